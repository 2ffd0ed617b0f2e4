/* SPDX-License-Identifier: BSD-3-Clause */
/*
 * The guest's RAM: what the daemon maps, and single words of it.
 *
 * The machine's RAM must be a `memory-backend-memfd,share=on`. Memory that is plugged in later is not known here.
 */
#include "rig.h"

static uint64_t ram_size;

int memory_region(papr_intc_region *region)
{
    void *machine = qemu.qdev_get_machine();
    char *path = qemu.object_property_get_str(machine, "memory-backend", NULL);
    void *backend = path && *path ? qemu.object_resolve_path(path, NULL) : NULL;
    qemu.g_free(path);
    if (!backend || !qemu.object_property_get_bool(backend, "share", NULL))
        return -1;
    void *ram = qemu.host_memory_backend_get_memory(backend);
    ram_size = qemu.memory_region_size(ram);
    *region = (papr_intc_region){
        .gpa = 0,
        .size = ram_size,
        .fd = qemu.memory_region_get_fd(ram),
        .offset = 0,
        .host = qemu.memory_region_get_ram_ptr(ram),
    };
    return region->fd;
}

static bool in_ram(uint64_t gpa, uint64_t length)
{
    return gpa < ram_size && length <= ram_size - gpa;
}

/* In RAM this takes no lock: it stores, and marks the page dirty. */
bool memory_store_u32(uint64_t gpa, uint32_t value)
{
    uint32_t result;
    if (gpa % 4 != 0 || !in_ram(gpa, sizeof value))
        return false;
    qemu.address_space_stl_be(qemu.address_space_memory, gpa, value, ATTRS_UNSPECIFIED, &result);
    return result == 0;
}

uint32_t memory_load_u32(uint64_t gpa)
{
    if (!in_ram(gpa, sizeof(uint32_t)))
        return 0;
    return qemu.address_space_ldl_be(qemu.address_space_memory, gpa, ATTRS_UNSPECIFIED, NULL);
}

bool memory_load(uint64_t gpa, void *into, uint64_t length)
{
    return in_ram(gpa, length) &&
           qemu.address_space_read_full(qemu.address_space_memory, gpa, ATTRS_UNSPECIFIED, into,
                                        length) == 0;
}
