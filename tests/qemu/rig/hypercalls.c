/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Hypercalls: those about interrupts are papr-intc's, all others QEMU's. H_RTAS and H_CAS are both's.
 */
#include <string.h>

#include "rig.h"
#include "shadow.h"

#define H_EOI 0x64
#define H_CPPR 0x68
#define H_IPI 0x6c
#define H_IPOLL 0x70
#define H_XIRR 0x74
#define H_XIRR_X 0x2fc
#define H_INT_SET_SOURCE_CONFIG 0x3ac
#define H_INT_SET_QUEUE_CONFIG 0x3b8
#define H_INT_FIRST 0x3a8
#define H_INT_RESET 0x3d0
#define H_RTAS 0xf000
#define H_CAS 0xf002

#define H_HARDWARE (-1)

void (*hypercall_original)(void *vhyp, void *cpu);

static bool is_ours(uint64_t opcode)
{
    switch (opcode) {
    case H_EOI:
    case H_CPPR:
    case H_IPI:
    case H_IPOLL:
    case H_XIRR:
    case H_XIRR_X:
        return true;
    default:
        return opcode >= H_INT_FIRST && opcode <= H_INT_RESET && opcode % 4 == 0;
    }
}

/* Does it wait for the daemon? */
static bool waits(uint64_t opcode)
{
    return rig.mode == REMOTE || opcode == H_INT_SET_SOURCE_CONFIG ||
           opcode == H_INT_SET_QUEUE_CONFIG || opcode == H_INT_RESET;
}

static void serve(struct vcpu *vcpu, uint64_t *gpr)
{
    uint64_t opcode = gpr[3], args[9];
    int64_t ret = H_HARDWARE;
    bool drop = waits(opcode);
    memcpy(args, &gpr[4], sizeof args);
    if (drop)
        lock_drop();
    int rc = papr_intc_hcall(vcpu->handle, opcode, args, &ret);
    if (drop)
        lock_take();
    if (rc < 0)
        say("hypercall %x of vCPU %u: %s", (unsigned)opcode, vcpu->server, papr_intc_last_error());
    else
        memcpy(&gpr[4], args, sizeof args);
    gpr[3] = (uint64_t)ret;
    line_sync(vcpu);
}

/* QEMU's result goes to the guest, ours is compared with it. */
static void compare(struct vcpu *vcpu, uint64_t *gpr, void *vhyp)
{
    uint64_t opcode = gpr[3], args[9];
    int64_t ret = H_HARDWARE;
    memcpy(args, &gpr[4], sizeof args);
    shadow_hcall_begins(vcpu->server, opcode, args);
    shadow_inside = true;
    hypercall_original(vhyp, vcpu->cpu);
    shadow_inside = false;
    shadow_hcall_theirs((int64_t)gpr[3], &gpr[4]);
    if (papr_intc_hcall(vcpu->handle, opcode, args, &ret) < 0)
        fail("hypercall %x: %s", (unsigned)opcode, papr_intc_last_error());
    shadow_hcall_ours(ret, args);
    shadow_op_ends();
}

void hypercall_hook(void *vhyp, void *cpu)
{
    uint64_t *gpr = registers_of(cpu);
    uint64_t opcode = gpr[3];
    bool rtas = opcode == H_RTAS, cas = opcode == H_CAS;
    if (!(is_ours(opcode) || rtas || cas) || registers_problem_state(cpu)) {
        hypercall_original(vhyp, cpu);
        return;
    }
    struct vcpu *vcpu = vcpu_of(cpu);
    if (!vcpu || !vcpu->handle)
        fail("hypercall %x of an unknown vCPU", (unsigned)opcode);
    if (cas) {
        cas_pass(vcpu, gpr, vhyp);
    } else if (rtas) {
        if (!rtas_serve(vcpu, gpr, vhyp))
            hypercall_original(vhyp, cpu);
    } else {
        rig.hcalls++;
        if (rig.mode == SHADOW)
            compare(vcpu, gpr, vhyp);
        else
            serve(vcpu, gpr);
    }
}
