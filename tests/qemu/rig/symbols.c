/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * Finding QEMU's exported functions, and where its code lies. See symbols.h.
 */
#define _GNU_SOURCE
#include "symbols.h"

#include <dlfcn.h>
#include <elf.h>
#include <link.h>

struct qemu qemu;

const char *symbols_find(void)
{
#define FIND(result, name, arguments)                                                              \
    *(void **)&qemu.name = dlsym(RTLD_DEFAULT, #name);                                             \
    if (!qemu.name)                                                                                \
        return #name;
    QEMU_FUNCTIONS(FIND)
#undef FIND
    qemu.address_space_memory = dlsym(RTLD_DEFAULT, "address_space_memory");
    if (!qemu.address_space_memory)
        return "address_space_memory";
    return dlsym(RTLD_DEFAULT, "current_cpu") ? NULL : "current_cpu";
}

void *symbols_current_cpu(void)
{
    /* A variable of each thread: its address is asked for once in each. */
    static __thread void **mine;
    if (!mine)
        mine = dlsym(RTLD_DEFAULT, "current_cpu");
    return *mine;
}

struct text {
    uintptr_t inside, begin, end;
};

static int look_for_text(struct dl_phdr_info *info, size_t size, void *opaque)
{
    struct text *text = opaque;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        uintptr_t begin = info->dlpi_addr + part->p_vaddr;
        if (part->p_type == PT_LOAD && (part->p_flags & PF_X) && text->inside >= begin &&
            text->inside < begin + part->p_memsz) {
            text->begin = begin;
            text->end = begin + part->p_memsz;
            return 1;
        }
    }
    return 0;
}

void symbols_text(uintptr_t *begin, uintptr_t *end)
{
    static struct text text;
    if (!text.end) {
        text.inside = (uintptr_t)qemu.spapr_hypercall;
        dl_iterate_phdr(look_for_text, &text);
    }
    *begin = text.begin;
    *end = text.end;
}
