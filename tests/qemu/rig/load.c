/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Getting into QEMU, and refusing what the rig does not know.
 *
 * The object is preloaded (LD_PRELOAD), or loaded as a plugin (-plugin file=…). Its constructor finds QEMU's functions and compares
 * the version. When all classes are known and no machine exists (QEMU calls back; a plugin is loaded at such a time),
 * the classes' methods are replaced. The rest waits until the machine is complete (machine.c). In any
 * program but qemu-system-ppc64 it does nothing.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "rig.h"

#define REFUSED 77
#define FAILED 70
#define WHEN_CLASSES_ARE_KNOWN 0 /* MODULE_INIT_MIGRATION */

/* Versions that the rig has been tried with: what query-version reports. */
static const struct {
    int64_t numbers[3];
    const char *package;
} known[] = {
    {{7, 2, 22}, "Debian 1:7.2+dfsg-7+deb12u18+b3"},
};

struct rig rig;

static void line(const char *prefix, const char *format, va_list arguments)
{
    char text[1024];
    vsnprintf(text, sizeof text, format, arguments);
    /* One write: lines of several threads do not mix. */
    fprintf(stderr, "papr-intc-rig: %s%s\n", prefix, text);
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    line("", format, arguments);
    va_end(arguments);
}

void refuse(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    line("refused: ", format, arguments);
    va_end(arguments);
    _exit(REFUSED);
}

void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    line("failed: ", format, arguments);
    va_end(arguments);
    _exit(FAILED);
}

static void check_version(void)
{
    struct version *version = qemu.qmp_query_version(NULL);
    const int64_t *numbers = version->numbers;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (memcmp(numbers, known[i].numbers, sizeof known[i].numbers) == 0 &&
            strcmp(version->package, known[i].package) == 0)
            return;
    refuse("unknown version of QEMU: %d.%d.%d (%s)", (int)numbers[0], (int)numbers[1],
           (int)numbers[2], version->package);
}

static enum mode mode_wanted(void)
{
    const char *mode = getenv("PAPR_INTC_MODE");
    if (!mode || strcmp(mode, "mapped") == 0)
        return MAPPED;
    if (strcmp(mode, "remote") == 0)
        return REMOTE;
    if (strcmp(mode, "shadow") == 0)
        return SHADOW;
    refuse("PAPR_INTC_MODE=%s is none of mapped, remote, shadow", mode);
}

static bool in_qemu(void)
{
    char path[4096];
    ssize_t length = readlink("/proc/self/exe", path, sizeof path - 1);
    if (length <= 0)
        return false;
    path[length] = 0;
    const char *name = strrchr(path, '/');
    return name && strcmp(name + 1, "qemu-system-ppc64") == 0;
}

static void machine_known(struct notifier *notifier, void *data)
{
    (void)notifier;
    (void)data;
    machine_complete();
}

static void classes_known(void)
{
    static struct notifier complete = {.notify = machine_known};
    classes_install();
    machine_begins();
    qemu.qemu_add_machine_init_done_notifier(&complete);
}

__attribute__((constructor)) static void load(void)
{
    if (!in_qemu())
        return;
    /* What QEMU spawns, the daemon first of all, is not to be preloaded. */
    unsetenv("LD_PRELOAD");
    const char *missing = symbols_find();
    if (missing)
        refuse("QEMU does not export %s", missing);
    check_version();
    rig.mode = mode_wanted();
    if (!getenv("PAPR_INTC_DAEMON"))
        refuse("PAPR_INTC_DAEMON does not name the daemon");
    qemu.register_module_init(classes_known, WHEN_CLASSES_ARE_KNOWN);
}

/* As a plugin: QEMU looks for these two names. */
#define EXPORTED __attribute__((visibility("default")))
EXPORTED int qemu_plugin_version = 1;

EXPORTED int qemu_plugin_install(uint64_t id, const void *info, int argc, char **argv)
{
    (void)id, (void)info, (void)argc, (void)argv;
    classes_known();
    return 0;
}
