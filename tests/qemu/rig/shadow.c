/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Shadow mode: QEMU's own controllers serve the guest, papr-intc does every operation after them, and what comes out is
 * compared: results, the vCPUs' lines, the entries of event queues.
 *
 * The big lock is held from the beginning of an operation to its end, so there is one order of all operations, and both
 * controllers see it. papr-intc's queue entries are kept here; QEMU's are in the guest's memory.
 *
 * Two results differ for good and are not compared as they are: QEMU gives the value of H_INT_ESB in the host's
 * byte order, and the time stamp of H_XIRR_X is anybody's.
 */
#include "shadow.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "record.h"

#define H_INT_SET_QUEUE_CONFIG 0x3b8
#define H_INT_ESB 0x3c8
#define H_XIRR_X 0x2fc
#define GENERATION 0x80000000u
#define MAX_ENTRIES 64
#define MAX_QUEUES 1024
#define SHOWN 20
#define WORDS 512

bool shadow_inside;

/* The operation under way. */
static struct {
    char words[WORDS], theirs[WORDS], ours[WORDS];
    uint64_t opcode;
    uint64_t args[9], their_args[9];
    int64_t their_ret;
    bool differs;
    struct {
        uint64_t gpa;
        uint32_t value;
    } entries[MAX_ENTRIES];
    unsigned count;
} op;

/* Event queues that the guest has set up (and zeroed): where QEMU's next entry belongs, and its generation. */
static struct queue {
    uint64_t server, priority, page, size, next;
    uint32_t generation;
} queues[MAX_QUEUES];
static unsigned queue_count;

static void begin(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void begin(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(op.words, sizeof op.words, format, arguments);
    va_end(arguments);
    op.theirs[0] = op.ours[0] = 0;
    op.count = 0;
    op.differs = false;
    record("%s", op.words);
}

/* Adds to what came out, on one side. */
static void add(char *text, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void add(char *text, const char *format, ...)
{
    size_t used = strlen(text);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text + used, WORDS - used, format, arguments);
    va_end(arguments);
}

void shadow_note(const char *format, ...)
{
    if (rig.mode != SHADOW)
        return;
    va_list arguments;
    va_start(arguments, format);
    record_list(format, arguments);
    va_end(arguments);
}

/* Hypercalls. */

void shadow_hcall_begins(uint32_t server, uint64_t opcode, const uint64_t args[9])
{
    op.opcode = opcode;
    memcpy(op.args, args, sizeof op.args);
    begin("hcall %u %lx %lx %lx %lx %lx %lx", server, opcode, args[0], args[1], args[2], args[3], args[4]);
}

void shadow_hcall_theirs(int64_t ret, const uint64_t args[9])
{
    op.their_ret = ret;
    memcpy(op.their_args, args, sizeof op.their_args);
    record("  ret %lx %lx %lx %lx %lx", (uint64_t)ret, args[0], args[1], args[2], args[3]);
}

/* A queue is set up or taken away: arguments are flags, server, priority, page, size (a logarithm, 0: none). */
static void queue_configured(const uint64_t args[9])
{
    uint64_t server = args[1], priority = args[2], page = args[3], size = args[4];
    struct queue *queue = queues;
    while (queue < queues + queue_count && (queue->server != server || queue->priority != priority))
        queue++;
    if (queue == queues + MAX_QUEUES)
        return;
    if (queue == queues + queue_count)
        queue_count++;
    *queue = (struct queue){server, priority, page, size ? UINT64_C(1) << size : 0, page, GENERATION};
}

void shadow_hcall_ours(int64_t ret, const uint64_t args[9])
{
    uint64_t ours[9];
    memcpy(ours, args, sizeof ours);
    if (op.opcode == H_XIRR_X)
        ours[1] = op.their_args[1];
    if (op.opcode == H_INT_ESB && op.their_ret == 0 && !(op.args[0] & 1))
        ours[0] = __builtin_bswap64(ours[0]);
    if (ret != op.their_ret || memcmp(ours, op.their_args, sizeof ours) != 0) {
        op.differs = true;
        add(op.theirs, " ret %lx", (uint64_t)op.their_ret);
        add(op.ours, " ret %lx", (uint64_t)ret);
        for (int i = 0; i < 9; i++) {
            add(op.theirs, " %lx", op.their_args[i]);
            add(op.ours, " %lx", ours[i]);
        }
    }
    if (op.opcode == H_INT_SET_QUEUE_CONFIG && op.their_ret == 0)
        queue_configured(op.args);
}

/* RTAS calls. */

void shadow_rtas_begins(uint32_t server, const char *name, uint32_t nargs, const uint32_t *args)
{
    begin("rtas %u %s %x %x %x %x", server, name, nargs, args[0], args[1], args[2]);
}

void shadow_rtas_ends(const uint32_t theirs[3], const uint32_t *ours, uint32_t written)
{
    record("  ret %x %x %x", theirs[0], theirs[1], theirs[2]);
    for (uint32_t i = 0; i < written && i < 3; i++) {
        if (theirs[i] == ours[i])
            continue;
        op.differs = true;
        add(op.theirs, " ret[%u] %x", i, theirs[i]);
        add(op.ours, " ret[%u] %x", i, ours[i]);
    }
}

/* Accesses. */

void shadow_load_begins(uint32_t server, const char *window, uint64_t offset, unsigned size)
{
    begin("load %u %s %lx %x", server, window, offset, size);
}

void shadow_load_ends(uint64_t theirs, uint64_t ours)
{
    record("  ret %lx", theirs);
    if (theirs == ours)
        return;
    op.differs = true;
    add(op.theirs, " ret %lx", theirs);
    add(op.ours, " ret %lx", ours);
}

void shadow_store_begins(uint32_t server, const char *window, uint64_t offset, unsigned size,
                         uint64_t value)
{
    begin("store %u %s %lx %x %lx", server, window, offset, size, value);
}

void shadow_irq_begins(enum kind kind, int irq, int level, bool lsi)
{
    if (lsi || level)
        begin("irq %s %x %d", kind == XICS ? "xics" : "xive", irq, level);
}

/* Effects. */

void shadow_line(uint32_t server, int level)
{
    record("  line %u %d", server, level);
}

bool shadow_queue_entry(uint64_t gpa, uint32_t value)
{
    if (op.count == MAX_ENTRIES)
        return false;
    op.entries[op.count].gpa = gpa;
    op.entries[op.count++].value = value;
    return true;
}

/* The entry of ours with this address and value, and forgets it. */
static bool take_entry(uint64_t gpa, uint32_t value)
{
    for (unsigned i = 0; i < op.count; i++) {
        if (op.entries[i].gpa != gpa || op.entries[i].value != value)
            continue;
        op.entries[i] = op.entries[--op.count];
        return true;
    }
    return false;
}

/* QEMU's new entries are where the next ones belong, and have the generation of this round. */
static void find_entries(struct queue *queue)
{
    for (unsigned i = 0; queue->size && i < MAX_ENTRIES; i++) {
        uint32_t theirs = memory_load_u32(queue->next);
        if ((theirs & GENERATION) != queue->generation)
            return;
        record("  dma %lx %08x", queue->next, theirs);
        if (!take_entry(queue->next, theirs)) {
            op.differs = true;
            add(op.theirs, " dma %lx %08x", queue->next, theirs);
        }
        queue->next += 4;
        if (queue->next == queue->page + queue->size) {
            queue->next = queue->page;
            queue->generation ^= GENERATION;
        }
    }
}

static void compare_entries(void)
{
    for (unsigned i = 0; i < queue_count; i++)
        find_entries(&queues[i]);
    for (unsigned i = 0; i < op.count; i++) {
        op.differs = true;
        add(op.ours, " dma %lx %08x", op.entries[i].gpa, op.entries[i].value);
    }
}

static void compare_lines(void)
{
    for (uint32_t server = 0; server <= rig.last_server; server++) {
        struct vcpu *vcpu = rig.vcpus[server];
        if (!vcpu || !vcpu->handle)
            continue;
        int ours = papr_intc_pending(vcpu->handle);
        if (ours == vcpu->theirs)
            continue;
        op.differs = true;
        add(op.theirs, " line %u %d", server, vcpu->theirs);
        add(op.ours, " line %u %d", server, ours);
    }
}

void shadow_op_ends(void)
{
    compare_entries();
    compare_lines();
    if (!op.differs)
        return;
    record("# difference: QEMU%s; papr-intc%s", op.theirs, op.ours);
    if (rig.differences++ < SHOWN)
        say("difference: %s: QEMU%s; papr-intc%s", op.words, op.theirs, op.ours);
}

void shadow_reset(void)
{
    queue_count = 0;
}

void shadow_end(void)
{
    if (rig.mode == SHADOW)
        record_end(rig.differences != 0);
}
