#!/usr/bin/env python3
"""Compiles SPIR-V for AMD GPUs that need not be there, by Mesa's RADV without hardware.

    RADV_FORCE_FAMILY=navi21 tests/radv.py DIRECTORY

Each NAME.spv of the folder is a compute shader with an entry point `main`, whose resources are storage buffers at
bindings 0 to 7 of set 0. NAME.json gets what the driver says about it: its statistics by name, and the assembly.
The Rust test `ceilings` calls this program. It is not Rust because Vulkan takes unsafe code, which this workspace
forbids, and wgpu cannot open RADV's device without hardware.
"""

import ctypes as c
import json
import pathlib
import sys

vulkan = c.CDLL("libvulkan.so.1")

# Numbers of vulkan_core.h.
COMPUTE_STAGE = 0x20
STORAGE_BUFFER = 7
CAPTURE_STATISTICS, CAPTURE_REPRESENTATIONS = 0x40, 0x80
FEATURES_2, FEATURES_1_1, FEATURES_1_2, FEATURES_EXECUTABLES = 1000059000, 49, 51, 1000269000
EXTENSION = c.c_char_p(b"VK_KHR_pipeline_executable_properties")


def struct(**fields):
    """A structure with these fields, whose types are those of the values."""
    kind = type("Struct", (c.Structure,), {"_fields_": [(name, type(value)) for name, value in fields.items()]})
    return kind(*fields.values())


def info(kind, following=None, **fields):
    """A structure that begins with `sType` and `pNext`."""
    return struct(kind=c.c_uint32(kind), following=address(following), **fields)


def address(of):
    """A pointer to a structure, which its owner keeps."""
    return c.c_void_p(None if of is None else c.addressof(of))


def u32(number):
    return c.c_uint32(number)


def call(function, *arguments):
    """Calls a function of Vulkan, and fails as it does."""
    result = function(*arguments)
    if result != 0:
        sys.exit(f"{function.__name__}: VkResult {result}")


def create(function, parent, description):
    """What a function vkCreate… makes."""
    made = c.c_uint64()
    call(function, parent, c.byref(description), None, c.byref(made))
    return made


def features(kind, count, on, following=None):
    """A structure of features with those of these indices."""
    flags = (c.c_uint32 * count)(*(int(index in on) for index in range(count)))
    return info(kind, following, flags=flags)


def open_device():
    application = info(0, name=c.c_char_p(), version=u32(0), engine=c.c_char_p(), engine_version=u32(0),
                       api=u32(1 << 22 | 3 << 12))
    instance = c.c_void_p()
    call(vulkan.vkCreateInstance,
         c.byref(info(1, flags=u32(0), application=address(application), layers=u32(0), layer_names=c.c_void_p(),
                      extensions=u32(0), extension_names=c.c_void_p())), None, c.byref(instance))
    count, physical = u32(1), c.c_void_p()
    vulkan.vkEnumeratePhysicalDevices(instance, c.byref(count), c.byref(physical))
    if count.value == 0:
        sys.exit("no Vulkan device")
    # Statistics; 16-bit buffers; f16; bounds that the hardware checks, as wgpu asks for; 16-bit integers.
    executables = features(FEATURES_EXECUTABLES, 1, [0])
    v12 = features(FEATURES_1_2, 47, [7], executables)
    v11 = features(FEATURES_1_1, 12, [0, 1], v12)
    enabled = features(FEATURES_2, 55, [0, 41], v11)
    priority = c.c_float(1)
    queue = info(2, flags=u32(0), family=u32(0), count=u32(1), priorities=address(priority))
    device = c.c_void_p()
    call(vulkan.vkCreateDevice, physical,
         c.byref(info(3, enabled, flags=u32(0), queues=u32(1), queue_infos=address(queue), layers=u32(0),
                      layer_names=c.c_void_p(), extensions=u32(1), extension_names=address(EXTENSION),
                      features=c.c_void_p())), None, c.byref(device))
    return device


def device_function(device, name):
    find = vulkan.vkGetDeviceProcAddr
    find.restype = c.c_void_p
    return c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_void_p, c.c_void_p)(find(device, name))


def pipeline_layout(device):
    binding = lambda index: struct(binding=u32(index), kind=u32(STORAGE_BUFFER), count=u32(1), stages=u32(COMPUTE_STAGE),
                                   samplers=c.c_void_p())
    bindings = [binding(index) for index in range(8)]
    table = b"".join(map(bytes, bindings))
    buffer = c.create_string_buffer(table, len(table))
    layout = create(vulkan.vkCreateDescriptorSetLayout, device,
                    info(32, flags=u32(0), count=u32(8), bindings=address(buffer)))
    return create(vulkan.vkCreatePipelineLayout, device,
                  info(30, flags=u32(0), sets=u32(1), layouts=address(layout), ranges=u32(0), constants=c.c_void_p()))


def compile_pipeline(device, layout, code):
    words = c.create_string_buffer(code, len(code))
    module = create(vulkan.vkCreateShaderModule, device,
                    info(16, flags=u32(0), size=c.c_size_t(len(code)), code=address(words)))
    # The stage is a member, and aligned as its pointers are.
    stage = info(18, flags=u32(0), stage=u32(COMPUTE_STAGE), module=module, name=c.c_char_p(b"main"),
                 constants=c.c_void_p())
    description = info(29, flags=u32(CAPTURE_STATISTICS | CAPTURE_REPRESENTATIONS), stage=stage, layout=layout,
                       base=c.c_uint64(0), base_index=c.c_int32(-1))
    pipeline = c.c_uint64()
    call(vulkan.vkCreateComputePipelines, device, c.c_uint64(0), u32(1), c.byref(description), None,
         c.byref(pipeline))
    return pipeline


class Statistic(c.Structure):
    _fields_ = [("kind", c.c_uint32), ("following", c.c_void_p), ("name", c.c_char * 256),
                ("description", c.c_char * 256), ("format", c.c_uint32), ("value", c.c_uint64)]


class Representation(c.Structure):
    _fields_ = [("kind", c.c_uint32), ("following", c.c_void_p), ("name", c.c_char * 256),
                ("description", c.c_char * 256), ("is_text", c.c_uint32), ("size", c.c_size_t), ("data", c.c_void_p)]


def listed(function, device, what, kind, number):
    """All structures that a function lists."""
    count = u32(0)
    call(function, device, c.byref(what), c.byref(count), None)
    found = (kind * count.value)(*(kind(number) for _ in range(count.value)))
    call(function, device, c.byref(what), c.byref(count), c.byref(found))
    return found


def main(folder):
    device = open_device()
    layout = pipeline_layout(device)
    get_statistics = device_function(device, b"vkGetPipelineExecutableStatisticsKHR")
    get_representations = device_function(device, b"vkGetPipelineExecutableInternalRepresentationsKHR")
    for path in sorted(pathlib.Path(folder).glob("*.spv")):
        pipeline = compile_pipeline(device, layout, path.read_bytes())
        what = info(1000269003, pipeline=pipeline, executable=u32(0))
        statistics = {one.name.decode(): one.value
                      for one in listed(get_statistics, device, what, Statistic, 1000269004)}
        found = listed(get_representations, device, what, Representation, 1000269005)
        texts = [c.create_string_buffer(one.size + 1) for one in found]
        for one, text in zip(found, texts):
            one.data = c.addressof(text)
        count = u32(len(found))
        call(get_representations, device, c.byref(what), c.byref(count), c.byref(found))
        assembly = next(text.value.decode() for one, text in zip(found, texts) if one.name == b"Assembly")
        path.with_suffix(".json").write_text(json.dumps({"statistics": statistics, "assembly": assembly}))


main(sys.argv[1])
