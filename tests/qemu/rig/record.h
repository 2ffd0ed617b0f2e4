/* SPDX-License-Identifier: BSD-3-Clause */
/* Shadow mode's recording. See record.c. */
#ifndef RIG_RECORD_H
#define RIG_RECORD_H

#include <stdarg.h>
#include <stdbool.h>

/* A line, without its end. Nothing happens if no recording was asked for. */
void record(const char *format, ...) __attribute__((format(printf, 1, 2)));
void record_list(const char *format, va_list arguments);

/* The recording is complete; it is kept if it is worth it. */
void record_end(bool keep);

#endif
