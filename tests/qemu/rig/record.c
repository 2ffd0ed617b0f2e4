/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Shadow mode's recording: every operation with QEMU's results, in the format that examples/replay reads.
 *
 * PAPR_INTC_SHADOW is the beginning of the file's name; ".rec" is added. It is written as the guest runs, and
 * removed at the end if there was no difference, unless PAPR_INTC_SHADOW_KEEP is set.
 */
#include "record.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "rig.h"

#define BUFFER (1 << 20)

static char path[4096];

static FILE *file(void)
{
    static FILE *open;
    static bool tried;
    if (tried)
        return open;
    tried = true;
    const char *prefix = getenv("PAPR_INTC_SHADOW");
    if (!prefix || rig.mode != SHADOW)
        return NULL;
    snprintf(path, sizeof path, "%s.rec", prefix);
    open = fopen(path, "we");
    if (!open)
        fail("%s cannot be written", path);
    setvbuf(open, NULL, _IOFBF, BUFFER);
    fputs("# QEMU's interrupt controllers serve, papr-intc follows\n", open);
    return open;
}

void record_list(const char *format, va_list arguments)
{
    FILE *out = file();
    if (!out)
        return;
    vfprintf(out, format, arguments);
    putc('\n', out);
}

void record(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    record_list(format, arguments);
    va_end(arguments);
}

void record_end(bool keep)
{
    FILE *out = file();
    if (!out)
        return;
    fclose(out);
    if (keep || getenv("PAPR_INTC_SHADOW_KEEP"))
        say("recording: %s", path);
    else
        unlink(path);
}
