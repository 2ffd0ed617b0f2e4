/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * A Unix socket (PAPR_INTC_CONTROL) for whoever runs the test. A command a line, and an answer a line:
 *
 *   pid            the daemon's; 0 while there is none
 *   restarts       how many daemons after the first
 *   query          JSON: what the daemon says of itself
 *   upgrade PATH   another binary takes over: "ok NANOSECONDS" or "error REASON"
 *
 * Its thread takes none of QEMU's locks, so it answers whatever the guest does.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "rig.h"

#define LINE_BYTES 4200

static void query(FILE *out)
{
    papr_intc_buffer text;
    if (papr_intc_query(rig.intc, PAPR_INTC_QUERY_STATUS, 0, &text) < 0) {
        fprintf(out, "error %s\n", papr_intc_last_error());
        return;
    }
    fprintf(out, "%s\n", (const char *)text.data);
    papr_intc_buffer_free(&text);
}

static void upgrade(FILE *out, const char *path)
{
    const char *arguments[] = {"--log-level", log_level(), NULL};
    papr_intc_upgraded upgraded = {.size = sizeof upgraded};
    if (papr_intc_upgrade(rig.intc, path, arguments, &upgraded) < 0)
        fprintf(out, "error %s\n", papr_intc_last_error());
    else
        fprintf(out, "ok %lu\n", upgraded.away_ns);
}

static void obey(FILE *out, char *line)
{
    line[strcspn(line, "\r\n")] = 0;
    if (strcmp(line, "pid") == 0)
        fprintf(out, "%d\n", papr_intc_daemon_pid(rig.intc));
    else if (strcmp(line, "restarts") == 0)
        fprintf(out, "%lu\n", papr_intc_restarts(rig.intc));
    else if (strcmp(line, "query") == 0)
        query(out);
    else if (strncmp(line, "upgrade ", 8) == 0)
        upgrade(out, line + 8);
    else
        fprintf(out, "error unknown command %s\n", line);
    fflush(out);
}

static void *serve(void *opaque)
{
    int listener = (int)(intptr_t)opaque;
    char line[LINE_BYTES];
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0 && errno != EINTR)
            return NULL;
        FILE *in = fd < 0 ? NULL : fdopen(fd, "r");
        FILE *out = in ? fdopen(dup(fd), "w") : NULL;
        while (out && fgets(line, sizeof line, in))
            obey(out, line);
        if (out)
            fclose(out);
        if (in)
            fclose(in);
    }
}

void control_install(void)
{
    const char *path = getenv("PAPR_INTC_CONTROL");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    pthread_t thread;
    if (!path)
        return;
    if (strlen(path) >= sizeof address.sun_path)
        refuse("PAPR_INTC_CONTROL is longer than a socket's path can be");
    strcpy(address.sun_path, path);
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(listener, 4) < 0)
        refuse("PAPR_INTC_CONTROL=%s: %s", path, strerror(errno));
    if (pthread_create(&thread, NULL, serve, (void *)(intptr_t)listener) != 0)
        fail("no thread");
    pthread_detach(thread);
}
