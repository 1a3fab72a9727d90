#!/usr/bin/env python3
"""An independent reader of a recorded migration stream.

It shares nothing with the Rust decoders but the format: a mistake made twice in one place shows here.
It reads a plain precopy stream (a file, already decompressed), checks every footer, size and end, and prints
a JSON summary. Exit status 1 and one line on stderr mean that the stream is not what it should be.

usage: read_stream.py [--values] [--ram DIRECTORY] FILE
  --values   print the scalar fields of every device too
  --ram      write each RAM block's final content to DIRECTORY, "/" in its name becoming "_"
"""

import argparse
import json
import os
import sys

PAGE = 4096
SCALARS = {
    "bool": (1, False), "uint8": (1, False), "uint16": (2, False), "uint32": (4, False), "uint64": (8, False),
    "int8": (1, True), "int16": (2, True), "int32": (4, True), "int64": (8, True),
    "uint8 equal": (1, False), "uint16 equal": (2, False), "uint32 equal": (4, False),
    "uint64 equal": (8, False), "int32 equal": (4, True), "timer": (8, True),
}
COMMANDS = {
    1: "OPEN_RETURN_PATH", 2: "PING", 3: "POSTCOPY_ADVISE", 4: "POSTCOPY_LISTEN", 5: "POSTCOPY_RUN",
    6: "POSTCOPY_RAM_DISCARD", 7: "PACKAGED", 8: "ENABLE_COLO", 9: "POSTCOPY_RESUME", 10: "RECV_BITMAP",
    11: "SWITCHOVER_START",
}
FIXED_LENGTHS = {1: 0, 2: 4, 4: 0, 5: 0, 7: 4, 8: 0, 9: 0, 11: 0}


class Broken(Exception):
    """The stream is not what it should be."""


class Stream:
    """Bytes with a position; every read says where it failed."""

    def __init__(self, data):
        self.data = data
        self.at = 0

    def take(self, count, what):
        if self.at + count > len(self.data):
            left = len(self.data) - self.at
            raise Broken(f"offset {self.at:#x}: {what} needs {count} bytes, {left} are left")
        piece = self.data[self.at:self.at + count]
        self.at += count
        return piece

    def number(self, width, what):
        return int.from_bytes(self.take(width, what), "big")

    def name(self, what):
        length = self.number(1, what)
        if length == 0:
            raise Broken(f"offset {self.at - 1:#x}: {what} is empty")
        return self.take(length, what).decode("utf-8")

    def peek(self):
        return self.data[self.at] if self.at < len(self.data) else None


def require(stream, condition, text):
    if not condition:
        raise Broken(f"offset {stream.at:#x}: {text}")


def find_description(data):
    """The JSON at the very end: the only candidate whose length reaches exactly to the last byte."""
    at = len(data)
    while True:
        at = data.rfind(b"\x00\x06", 0, at)
        if at < 0:
            raise Broken("no vmdescription at the end of the stream")
        length = int.from_bytes(data[at + 2:at + 6], "big")
        if at + 6 + length == len(data):
            break
        at += 1
    if length == 0:
        raise Broken("the vmdescription is empty")
    try:
        return json.loads(data[at + 6:].decode("utf-8")), at
    except ValueError as error:
        raise Broken(f"vmdescription: {error}") from None


def body_length(description):
    """Bytes of a device's body: its fields, then its subsections with their headers."""
    if "size" in description and "vmsd_name" not in description:
        return description["size"]
    total = sum(field["size"] * field.get("array_len", 1) for field in description.get("fields", []))
    for sub in description.get("subsections", []):
        total += 1 + 1 + len(sub["vmsd_name"].encode()) + 4 + body_length(sub)
    return total


def read_fields(stream, description, values):
    """Walks a body by its description: sizes of nested structures and the headers of subsections must agree."""
    for field in description.get("fields", []):
        for index in range(field.get("array_len", 1)):
            start = stream.at
            key = field["name"]
            if "index" in field:
                key = f"{key}[{field['index']}]"
            elif "array_len" in field:
                key = f"{key}[{index}]"
            if field["type"] == "struct" and "struct" in field and body_length(field["struct"]) == field["size"]:
                values[key] = {}
                read_fields(stream, field["struct"], values[key])
            elif field["type"] in SCALARS:
                width, signed = SCALARS[field["type"]]
                require(stream, field["size"] == width,
                        f"field {key} of type {field['type']} has {field['size']} bytes, expected {width}")
                values[key] = int.from_bytes(stream.take(width, key), "big", signed=signed)
            else:
                values[key] = stream.take(field["size"], key).hex()
            require(stream, stream.at == start + field["size"],
                    f"field {key} took {stream.at - start} bytes, its description says {field['size']}")
    for sub in description.get("subsections", []):
        require(stream, stream.number(1, "subsection mark") == 5, f"subsection {sub['vmsd_name']} is missing")
        got = stream.name("subsection name")
        require(stream, got == sub["vmsd_name"], f"subsection {got}, expected {sub['vmsd_name']}")
        version = stream.number(4, "subsection version")
        require(stream, version == sub["version"], f"subsection {got} version {version}, expected {sub['version']}")
        read_fields(stream, sub, values.setdefault(got, {}))


class Ram:
    """Content and counters of every block."""

    def __init__(self):
        self.blocks = {}
        self.current = None
        self.flushes = 0

    def read_body(self, stream):
        while True:
            word = stream.number(8, "RAM record")
            flags, address = word & 0xFFF, word & ~0xFFF
            kind = flags & ~0x20
            if kind == 0x10:
                return
            if kind == 0x04:
                self.read_setup(stream, address)
            elif kind == 0x200:
                self.flushes += 1
            elif kind in (0x02, 0x08, 0x40):
                self.read_page(stream, kind, flags, address)
            else:
                raise Broken(f"offset {stream.at - 8:#x}: RAM record flags {flags:#x}")

    def read_setup(self, stream, total):
        while total > 0:
            name = stream.name("RAM block name")
            length = stream.number(8, "RAM block length")
            require(stream, name not in self.blocks, f"RAM block {name} is listed twice")
            require(stream, 0 < length <= total and length % PAGE == 0, f"RAM block {name} has length {length:#x}")
            self.blocks[name] = {"length": length, "zero": 0, "normal": 0, "xbzrle": 0, "data": bytearray(length)}
            total -= length

    def read_page(self, stream, kind, flags, address):
        if not flags & 0x20:
            self.current = stream.name("RAM block name")
        require(stream, self.current in self.blocks, f"page of unknown RAM block {self.current}")
        block = self.blocks[self.current]
        require(stream, address + PAGE <= block["length"], f"page {address:#x} outside of {self.current}")
        if kind == 0x02:
            require(stream, stream.number(1, "zero page") == 0, "a zero page of another value")
            block["data"][address:address + PAGE] = bytes(PAGE)
            block["zero"] += 1
        elif kind == 0x08:
            block["data"][address:address + PAGE] = stream.take(PAGE, "page")
            block["normal"] += 1
        else:
            require(stream, stream.number(1, "XBZRLE mark") == 1, "XBZRLE record without its mark")
            delta = stream.take(stream.number(2, "XBZRLE length"), "XBZRLE delta")
            self.apply_delta(stream, delta, block["data"], address)
            block["xbzrle"] += 1

    @staticmethod
    def apply_delta(stream, delta, data, address):
        position, at = 0, 0

        def run():
            nonlocal position
            require(stream, position < len(delta), "XBZRLE delta ends in a run")
            value = delta[position] & 0x7F
            if delta[position] & 0x80:
                require(stream, position + 1 < len(delta), "XBZRLE delta ends in a length")
                value |= delta[position + 1] << 7
                position += 1
            position += 1
            return value

        while position < len(delta):
            at += run()
            count = run()
            require(stream, count > 0, "XBZRLE run of no bytes")
            require(stream, at + count <= PAGE and position + count <= len(delta), "XBZRLE run leaves its page")
            data[address + at:address + at + count] = delta[position:position + count]
            position += count
            at += count


class Reader:
    """The whole stream, in order."""

    def __init__(self, data):
        self.stream = Stream(data)
        self.ram = Ram()
        self.summary = {"commands": [], "sections": {}, "devices": []}
        self.live = {}
        self.ended = set()
        self.description, self.description_at = find_description(data)
        self.expected_devices = list(self.description["devices"])

    def read(self):
        stream = self.stream
        require(stream, stream.take(4, "magic") == b"QEVM", "not a migration stream")
        version = stream.number(4, "version")
        require(stream, version == 3, f"stream version {version}, expected 3")
        if stream.peek() == 7:
            self.read_configuration()
        while True:
            kind = stream.number(1, "section type")
            if kind == 0:
                break
            if kind == 8:
                self.read_command()
            elif kind in (1, 4):
                self.read_full_header(kind)
            elif kind in (2, 3):
                self.read_continuation(kind)
            else:
                raise Broken(f"offset {stream.at - 1:#x}: section type {kind:#x}")
        require(stream, stream.at == self.description_at + 1, "EOF mark where the vmdescription does not follow")
        require(stream, not self.expected_devices,
                f"the vmdescription lists {len(self.expected_devices)} more devices than the stream has")
        # A background snapshot's stream never ends its ram section; any other stream must.
        self.summary["sections_without_end"] = sorted(set(self.live) - self.ended)
        require(stream, self.description.get("page_size") == PAGE, "vmdescription: page_size")
        return self.summary

    def read_configuration(self):
        stream = self.stream
        stream.take(1, "configuration")
        machine = stream.take(stream.number(4, "machine name length"), "machine name").decode("utf-8")
        described = self.description.get("configuration", {})
        require(stream, described.get("vmsd_name") == "configuration", "vmdescription: no configuration")
        sizes = {field["name"]: field["size"] for field in described["fields"]}
        require(stream, sizes == {"len": 4, "name": len(machine)}, f"vmdescription: configuration fields {sizes}")
        self.summary["machine"] = machine
        self.summary["capabilities"] = []
        while stream.peek() == 5:
            stream.take(1, "subsection mark")
            name = stream.name("subsection name")
            require(stream, stream.number(4, "subsection version") == 1, f"subsection {name}: version")
            if name == "configuration/capabilities":
                count = stream.number(4, "capability count")
                self.summary["capabilities"] = [stream.name("capability") for _ in range(count)]
            elif name == "configuration/uuid":
                self.summary["uuid"] = stream.take(16, "uuid").hex()
            elif name == "configuration/target-page-bits":
                require(stream, stream.number(4, "page bits") == 12, "page bits")
            else:
                raise Broken(f"offset {stream.at:#x}: unknown subsection {name}")
        unread = [name for name in self.summary["capabilities"] if name in ("mapped-ram", "x-ignore-shared")]
        require(stream, not unread, f"this reader does not read streams with {unread}")

    def read_command(self):
        stream = self.stream
        number = stream.number(2, "command")
        length = stream.number(2, "command length")
        require(stream, number in COMMANDS, f"command {number}")
        require(stream, FIXED_LENGTHS.get(number, length) == length, f"{COMMANDS[number]} with {length} bytes")
        payload = stream.take(length, "command payload")
        require(stream, number in (1, 2, 3, 11), f"this reader does not read streams with {COMMANDS[number]}")
        self.summary["commands"].append({"name": COMMANDS[number], "payload": payload.hex()})

    def read_full_header(self, kind):
        stream = self.stream
        section = stream.number(4, "section id")
        name = stream.name("section name")
        instance = stream.number(4, "instance id")
        version = stream.number(4, "version")
        if kind == 1:
            require(stream, (name, instance, version) == ("ram", 0, 4),
                    f"live section {name}/{instance} version {version}: only ram/0 version 4 can be read")
            require(stream, section not in self.live, f"section {section} starts twice")
            self.live[section] = name
            self.ram.read_body(stream)
        else:
            self.read_device(section, name, instance, version)
        self.read_footer(section)
        self.count("START" if kind == 1 else "FULL")

    def read_device(self, section, name, instance, version):
        stream = self.stream
        require(stream, self.expected_devices, f"section {name}/{instance} is not in the vmdescription")
        entry = self.expected_devices.pop(0)
        got = (name, instance, version)
        # A device of the old kind has no version in its description.
        described = (entry["name"], entry["instance_id"], entry.get("version", version))
        require(stream, got == described, f"section {got}, but the vmdescription has {described}")
        start, length, values = stream.at, body_length(entry), {}
        if "vmsd_name" in entry:
            read_fields(stream, entry, values)
        else:
            values["data"] = stream.take(length, name).hex()
        require(stream, stream.at == start + length, f"{name} took {stream.at - start} bytes, expected {length}")
        self.summary["devices"].append({"section": section, "name": name, "instance": instance, "version": version,
                                        "vmsd_name": entry.get("vmsd_name"), "bytes": length, "values": values})

    def read_continuation(self, kind):
        section = self.stream.number(4, "section id")
        require(self.stream, section in self.live and section not in self.ended, f"section {section} is not open")
        self.ram.read_body(self.stream)
        self.read_footer(section)
        if kind == 3:
            self.ended.add(section)
        self.count("PART" if kind == 2 else "END")

    def read_footer(self, section):
        mark, got = self.stream.number(1, "footer"), self.stream.number(4, "footer")
        require(self.stream, (mark, got) == (0x7E, section), f"footer {mark:#x} of {got}, expected 0x7e of {section}")

    def count(self, kind):
        self.summary["sections"][kind] = self.summary["sections"].get(kind, 0) + 1


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--values", action="store_true")
    parser.add_argument("--ram", metavar="DIRECTORY")
    parser.add_argument("file")
    arguments = parser.parse_args()
    with open(arguments.file, "rb") as file:
        data = file.read()
    try:
        reader = Reader(data)
        summary = reader.read()
    except (Broken, KeyError, UnicodeDecodeError) as error:
        print(f"{arguments.file}: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    if not arguments.values:
        for device in summary["devices"]:
            del device["values"]
    summary["ram"] = {}
    for name, block in reader.ram.blocks.items():
        content = block.pop("data")
        if arguments.ram:
            with open(os.path.join(arguments.ram, name.replace("/", "_")), "wb") as file:
                file.write(content)
        summary["ram"][name] = block
    summary["multifd_flushes"] = reader.ram.flushes
    summary["bytes"] = len(data)
    json.dump(summary, sys.stdout, indent=1)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
