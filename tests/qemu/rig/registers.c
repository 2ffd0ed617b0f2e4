/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The general registers of a vCPU, to be read and written in place.
 *
 * They are an array inside QEMU's CPU object. Where is found by value: the only place that holds what QEMU tells
 * a debugger. Every vCPU of a machine has the same type, so one place serves for all; it is compared again at each
 * of the first calls.
 */
#include <string.h>

#include "rig.h"

#define GPRS 32
#define DEBUGGER_MSR 65
#define MSR_PROBLEM_STATE 0x4000u
#define CHECKS 1000

static size_t place; /* 0: not found yet */

/* A register as a debugger sees it. The bytes are in the order that the guest runs in. */
static uint64_t debugger_register(void *cpu, int number, bool little)
{
    static __thread struct bytes *bytes;
    if (!bytes)
        bytes = qemu.g_byte_array_new();
    qemu.g_byte_array_set_size(bytes, 0);
    if (qemu.ppc_cpu_gdb_read_register(cpu, bytes, number) != 8 || bytes->length != 8)
        refuse("register %d of the CPU has not 8 bytes", number);
    uint64_t value;
    memcpy(&value, bytes->data, sizeof value);
    return little ? value : __builtin_bswap64(value);
}

/* MSR tells its own order: its lowest bit is LE, its highest byte ends with a bit that is never set. */
static uint64_t machine_state(void *cpu)
{
    uint64_t msr = debugger_register(cpu, DEBUGGER_MSR, true);
    return msr & 1 ? msr : __builtin_bswap64(msr);
}

bool registers_problem_state(void *cpu)
{
    return machine_state(cpu) & MSR_PROBLEM_STATE;
}

static void expected(void *cpu, uint64_t values[GPRS])
{
    bool little = machine_state(cpu) & 1;
    for (int i = 0; i < GPRS; i++)
        values[i] = debugger_register(cpu, i, little);
}

static void find(void *cpu)
{
    size_t size = qemu.object_type_get_instance_size(qemu.object_get_typename(cpu));
    uint64_t want[GPRS];
    unsigned found = 0;
    expected(cpu, want);
    for (size_t at = sizeof(uint64_t); at + sizeof want <= size; at += sizeof(uint64_t)) {
        if (memcmp((char *)cpu + at, want, sizeof want) == 0) {
            place = at;
            found++;
        }
    }
    if (found != 1)
        refuse("the registers are in %u places of a CPU object of %zu bytes", found, size);
}

uint64_t *registers_of(void *cpu)
{
    static unsigned checked;
    if (checked < CHECKS) {
        uint64_t want[GPRS];
        if (!place)
            find(cpu);
        expected(cpu, want);
        if (memcmp((char *)cpu + place, want, sizeof want) != 0)
            fail("the registers are not at byte %zu of a CPU object any more", place);
        checked++;
    }
    return (uint64_t *)((char *)cpu + place);
}
