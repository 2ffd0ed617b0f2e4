/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The four RTAS calls about interrupts, out of H_RTAS: r4 is the address of a block of big-endian words: token,
 * nargs, nret, arguments, results. Any other call is QEMU's.
 *
 * Tokens are QEMU's, asked for by name. On a machine without XICS they are not in its table, and the calls are
 * unknown there, as they are to QEMU.
 */
#include <string.h>

#include "rig.h"
#include "shadow.h"

#define REAL_ADDRESS UINT64_C(0x0fffffffffffffff)
#define CELLS 16
#define STATUS_HARDWARE (-1)
#define H_SUCCESS 0
#define TREE_BYTES 16384

static const struct {
    const char *name;
    uint32_t call;
    uint32_t usual; /* a running guest remembers tokens: they never change */
} calls[] = {
    {"ibm,set-xive", PAPR_INTC_RTAS_SET_XIVE, 0x200a},
    {"ibm,get-xive", PAPR_INTC_RTAS_GET_XIVE, 0x200b},
    {"ibm,int-off", PAPR_INTC_RTAS_INT_OFF, 0x200c},
    {"ibm,int-on", PAPR_INTC_RTAS_INT_ON, 0x200d},
};
#define CALLS (sizeof calls / sizeof *calls)

static uint32_t tokens[CALLS]; /* 0: none */

/* A block as the guest has it. */
struct block {
    uint64_t at;
    uint32_t nargs, nret;
};

void rtas_install(void)
{
    static uint64_t tree[TREE_BYTES / 8];
    if (qemu.fdt_create_empty_tree(tree, sizeof tree) != 0)
        fail("no empty device tree");
    qemu.spapr_dt_rtas_tokens(tree, 0);
    for (size_t i = 0; i < CALLS; i++) {
        int length;
        const void *value = qemu.fdt_getprop(tree, 0, calls[i].name, &length);
        uint32_t token = 0;
        if (value && length == sizeof token)
            memcpy(&token, value, sizeof token);
        tokens[i] = __builtin_bswap32(token);
        bool wanted = rig.kinds & XICS;
        if (tokens[i] != (wanted ? calls[i].usual : 0))
            refuse("RTAS call %s has token %x", calls[i].name, tokens[i]);
    }
}

static uint32_t word(const struct block *block, uint64_t number)
{
    return memory_load_u32(block->at + 4 * number);
}

/* Only calls that write the tables wait for the daemon. */
static bool waits(uint32_t call)
{
    return rig.mode == REMOTE || (rig.mode == MAPPED && call != PAPR_INTC_RTAS_GET_XIVE);
}

/* How many results are written to the guest; 1 if the counts are wrong. */
static uint32_t perform(struct vcpu *vcpu, uint32_t call, const uint32_t *args, const struct block *block,
                        uint32_t rets[CELLS])
{
    uint32_t nargs = block->nargs < CELLS ? block->nargs : CELLS;
    uint32_t nret = block->nret < CELLS ? block->nret : CELLS;
    if (waits(call))
        lock_drop();
    int rc = papr_intc_rtas(vcpu->handle, call, args, nargs, rets, nret);
    if (waits(call))
        lock_take();
    if (rc >= 0)
        return (uint32_t)rc;
    say("RTAS call %u of vCPU %u: %s", call, vcpu->server, papr_intc_last_error());
    rets[0] = (uint32_t)STATUS_HARDWARE;
    return 1;
}

bool rtas_serve(struct vcpu *vcpu, uint64_t *gpr, void *vhyp)
{
    struct block block = {.at = gpr[4] & REAL_ADDRESS};
    uint32_t token = word(&block, 0), args[CELLS] = {0}, rets[CELLS] = {0};
    size_t i = 0;
    while (i < CALLS && tokens[i] != token)
        i++;
    if (token == 0 || i == CALLS)
        return false;
    rig.hcalls++;
    block.nargs = word(&block, 1);
    block.nret = word(&block, 2);
    for (uint32_t arg = 0; arg < block.nargs && arg < CELLS; arg++)
        args[arg] = word(&block, 3 + arg);
    uint64_t results = 3 + (uint64_t)block.nargs;
    if (rig.mode == SHADOW) {
        uint32_t theirs[3] = {0};
        shadow_rtas_begins(vcpu->server, calls[i].name, block.nargs, args);
        hypercall_original(vhyp, vcpu->cpu);
        for (uint32_t ret = 0; ret < 3 && (ret < block.nret || ret == 0); ret++)
            theirs[ret] = word(&block, results + ret);
        uint32_t written = perform(vcpu, calls[i].call, args, &block, rets);
        shadow_rtas_ends(theirs, rets, written);
        shadow_op_ends();
        return true;
    }
    uint32_t written = perform(vcpu, calls[i].call, args, &block, rets);
    for (uint32_t ret = 0; ret < written; ret++)
        memory_store_u32(block.at + 4 * (results + ret), rets[ret]);
    gpr[3] = H_SUCCESS;
    line_sync(vcpu);
    return true;
}
