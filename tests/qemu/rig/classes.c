/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Methods of QEMU's classes, replaced.
 *
 * An interface class is a header, which is QEMU's own, then pointers to methods. Where the methods begin depends on
 * the version. It is found in the class of the machine's hypervisor interface: its `hypercall` method, the third, is the only
 * one that calls the exported function `spapr_hypercall`. The classes of the interrupt controllers have
 * the same header; what was found is checked there: the words before are no code, eight words from there on are.
 */
#include <string.h>

#include "rig.h"

#define HYPERCALL_METHOD 2
#define SEARCHED_WORDS 32
#define CODE_BYTES 256
#define METHODS (sizeof(struct intc_methods) / sizeof(void *))

bool in_text(uintptr_t address)
{
    uintptr_t begin, end;
    symbols_text(&begin, &end);
    return address >= begin && address < end;
}

/* Is there a call of `callee` in the first bytes of the code at `function`? */
static bool calls(uintptr_t function, uintptr_t callee)
{
    uintptr_t begin, end;
    symbols_text(&begin, &end);
    for (uintptr_t at = function; at < function + CODE_BYTES && at + 5 <= end; at++) {
        int32_t distance;
        memcpy(&distance, (void *)(at + 1), sizeof distance);
        if (*(uint8_t *)at == 0xe8 && at + 5 + (intptr_t)distance == callee)
            return true;
    }
    return false;
}

/* The word of a machine's interface class that is its `hypercall` method. */
static unsigned hypercall_word(const uintptr_t *words, const char *name)
{
    unsigned found = 0, at = 0;
    for (unsigned i = 0; i < SEARCHED_WORDS; i++) {
        if (in_text(words[i]) && calls(words[i], (uintptr_t)qemu.spapr_hypercall)) {
            found++;
            at = i;
        }
    }
    if (found != 1 || at < HYPERCALL_METHOD)
        refuse("%u methods of class %s call spapr_hypercall", found, name);
    return at;
}

/* Replaces the hypercall method of every machine that has one; the word at which methods begin. */
static unsigned replace_hypercall(void)
{
    unsigned at = 0, machines = 0;
    struct list *list = qemu.object_class_get_list("spapr-machine", true);
    for (; list; list = list->next) {
        uintptr_t *words = qemu.object_class_dynamic_cast(list->data, "ppc-virtual-hypervisor");
        if (!words)
            continue;
        unsigned here;
        if (machines++ == 0) {
            at = here = hypercall_word(words, "spapr-machine");
            memcpy(&hypercall_original, &words[at], sizeof hypercall_original);
        } else {
            here = at;
        }
        if (words[here] == (uintptr_t)hypercall_hook)
            continue; /* a class that several machines share */
        if (words[here] != (uintptr_t)hypercall_original)
            refuse("the machines have different hypercall methods");
        words[here] = (uintptr_t)hypercall_hook;
    }
    if (machines == 0)
        refuse("there is no pseries machine");
    return at - HYPERCALL_METHOD;
}

static void replace_controller(const char *name, unsigned first, const struct intc_methods *hooks,
                               struct intc_methods *originals)
{
    void *class = qemu.object_class_by_name(name);
    uintptr_t *words =
        class ? qemu.object_class_dynamic_cast(class, "spapr-interrupt-controller") : NULL;
    if (!words)
        refuse("class %s is no interrupt controller of a pseries machine", name);
    if (in_text(words[first - 1]))
        refuse("the methods of class %s do not begin at word %u", name, first);
    for (unsigned i = 0; i < METHODS; i++)
        if (!in_text(words[first + i]))
            refuse("method %u of class %s is no code", i, name);
    memcpy(originals, &words[first], sizeof *originals);
    memcpy(&words[first], hooks, sizeof *hooks);
}

void classes_install(void)
{
    unsigned first = replace_hypercall();
    replace_controller("ics-spapr", first, &xics_hooks, &xics_originals);
    replace_controller("spapr-xive", first, &xive_hooks, &xive_originals);
}
