/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Shadow mode: what each hook tells shadow.c. Nothing is done in other modes.
 *
 * An operation begins with its words, is done by QEMU, then by papr-intc, and ends with the comparison.
 */
#ifndef RIG_SHADOW_H
#define RIG_SHADOW_H

#include <stdbool.h>
#include <stdint.h>

#include "rig.h"

/* What is no operation of the guest or of a device; it has no result. */
void shadow_note(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* QEMU's own call is running, and accesses to the windows are its own: its H_INT_ESB makes one. */
extern bool shadow_inside;

void shadow_hcall_begins(uint32_t server, uint64_t opcode, const uint64_t args[9]);
void shadow_hcall_theirs(int64_t ret, const uint64_t args[9]);
void shadow_hcall_ours(int64_t ret, const uint64_t args[9]);

void shadow_rtas_begins(uint32_t server, const char *name, uint32_t nargs, const uint32_t *args);
void shadow_rtas_ends(const uint32_t theirs[3], const uint32_t *ours, uint32_t written);

void shadow_load_begins(uint32_t server, const char *window, uint64_t offset, unsigned size);
void shadow_load_ends(uint64_t theirs, uint64_t ours);
void shadow_store_begins(uint32_t server, const char *window, uint64_t offset, unsigned size,
                         uint64_t value);

void shadow_irq_begins(enum kind kind, int irq, int level, bool lsi);

/* QEMU's controller has set a vCPU's input. */
void shadow_line(uint32_t server, int level);
/* papr-intc writes a queue entry, which is kept from the guest's memory. */
bool shadow_queue_entry(uint64_t gpa, uint32_t value);

void shadow_op_ends(void);
void shadow_reset(void);
void shadow_end(void);

#endif
