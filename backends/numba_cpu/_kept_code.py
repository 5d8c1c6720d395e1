"""The loops of a two-model merge, kept as machine code between processes.

Importing numba and fetching one function from its cache takes half a second, as long as merging a
gigabyte. The compiled loops are therefore kept a second time, beside numba's own cache: as one
object file, which llvmlite loads, and where a linker is at hand as a shared library, which needs
neither. A file belongs to one source text, processor and version of numba and llvmlite; it is
loaded only if it is whole and belongs to this user. Where anything is missing the functions of
:mod:`._merge_kernels` are called through numba as usual.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...core.types import NumpyArray

_DIGEST = 32
Files = Sequence[tuple[int, int]]
"""Descriptors, each with a place in bytes: two sources, their precisions, and the result."""
_NAMES = ("linear_bits", "diagonal_bits_float32", "diagonal_bits_bits", "linear_files",
          "diagonal_files")  # fmt: skip
_SYSTEM = ("pread", "pwrite")
_PROCESSOR = re.compile(r"(vendor_id|cpu family|model|stepping|flags|Features|CPU \w+)\b")


@dataclass(frozen=True, slots=True, eq=False)
class KeptCode:
    """Functions in machine code; their arrays are contiguous, and their checks the caller's.

    Attributes
    ----------
    functions : mapping of str to callable
        By name; addresses and numbers in, the loop's return value out. The interpreter's lock is
        not held meanwhile.
    owner : object
        Keeps the code in memory.
    """

    functions: dict[str, Callable[..., bool]]
    owner: Any

    def linear(self, x: NumpyArray, y: NumpyArray, w: float, s: float, out: NumpyArray) -> bool:
        """:func:`._merge_kernels.linear_pair`."""
        found = self.functions["linear_bits"]
        return found(x.ctypes.data, y.ctypes.data, w, s, out.ctypes.data, len(out))

    def linear_files(
        self, files: Files, numbers: tuple[float, float], room: NumpyArray, size: int
    ) -> bool:
        """:func:`._merge_kernels.linear_files`; ``room`` (3, step) in uint16."""
        *sources, target = files
        rows = [row.ctypes.data for row in room]
        found = self.functions["linear_files"]
        places = [v for pair in sources for v in pair]
        return found(*places, *numbers, *target, *rows[:3], room.shape[1], size)

    def diagonal_files(
        self, files: Files, numbers: tuple[float, ...], room: NumpyArray, size: int
    ) -> bool:
        """:func:`._merge_kernels.diagonal_files`; ``room`` (7, step) in uint16."""
        *sources, target = files
        rows = [row.ctypes.data for row in room]
        found = self.functions["diagonal_files"]
        places = [v for pair in sources for v in pair]
        return found(
            *places, *numbers, *target, *rows[:4], rows[5], rows[3], rows[5], room.shape[1], size
        )

    def diagonal(
        self, x: NumpyArray, f: NumpyArray, numbers: tuple[float, ...], out: NumpyArray
    ) -> bool:
        """:func:`._merge_kernels.diagonal_pair`; ``f`` in float32 or as bfloat16 bits."""
        kind = "bits" if f.dtype.itemsize == 2 else "float32"
        places = (x[0].ctypes.data, x[1].ctypes.data, f[0].ctypes.data, f[1].ctypes.data)
        found = self.functions[f"diagonal_bits_{kind}"]
        return found(*places, *numbers, out.ctypes.data, len(out))


@cache
def kept_code() -> KeptCode | None:
    """The loops in machine code: loaded, or compiled and kept; ``None`` where that cannot be."""
    try:
        place = _folder() / f"merge-{_key()}.o"
        library = place.with_suffix(".so")
        if _read(library) is not None:
            with suppress(OSError):  # a folder whose files may not be executed
                return _functions_of(ctypes.CDLL(str(library)))
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        code = _read(place)
        if code is None:
            code = _compiled(llvm)
            _write(place, code)
            _link(code, library)
        return _loaded(llvm, code)
    except Exception:  # any of numba's and llvmlite's own: numba is then asked the usual way
        return None


def _key() -> str:
    """Of the loops' source, the compiler's version and the processor."""
    digest = hashlib.sha256()
    files = [Path(__file__).with_name("_merge_kernels.py"), Path(__file__)]
    for name in ("numba", "llvmlite"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise ImportError(f"{name} is not installed")
        files.append(Path(spec.origin).with_name("_version.py"))
    for file in files:
        digest.update(file.read_bytes() + b"\0")
    digest.update(_processor().encode())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """What decides which instructions the compiled code may use."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            first = file.read(1 << 14).split("\n\n")[0]
        return platform.machine() + "".join(
            line for line in first.splitlines() if _PROCESSOR.match(line)
        )
    except OSError:  # not Linux
        import llvmlite.binding as llvm

        facts = (llvm.get_process_triple(), llvm.get_host_cpu_name(),
                 llvm.get_host_cpu_features().flatten())  # fmt: skip
        return "\n".join(facts)


def _folder() -> Path:
    """Where numba keeps what it compiles: as told, beside the source, or in the user's cache."""
    told = os.environ.get("NUMBA_CACHE_DIR")
    if told:
        return Path(told)
    beside = Path(__file__).parent / "__pycache__"
    if os.access(beside if beside.exists() else beside.parent, os.W_OK):
        return beside
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "fishertope" / "kernels"


def _read(place: Path) -> bytes | None:
    """The machine code, if it is whole and this user's; its digest follows it."""
    try:
        with place.open("rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            found = file.read()
    except OSError:
        return None
    if hasattr(os, "getuid") and owner != os.getuid():
        return None
    code = found[:-_DIGEST]
    return code if hashlib.sha256(code).digest() == found[-_DIGEST:] else None


def _write(place: Path, code: bytes) -> None:
    """Keep it for the next process, if the folder can be written to."""
    from ...core.storage import write_bytes

    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_bytes(place, code + hashlib.sha256(code).digest())
    except Exception:  # a full disk, say: compiled again next time
        return


def _link(code: bytes, library: Path) -> None:
    """Make a shared library of the object file, if a linker is at hand.

    The system loads it without LLVM, whose import takes 30 ms.
    """
    import shutil
    import subprocess
    import tempfile

    linker = shutil.which("ld")
    if linker is None or sys.platform != "linux":
        return
    with suppress(Exception), tempfile.TemporaryDirectory() as folder:
        inside, out = Path(folder) / "loops.o", Path(folder) / "loops.so"
        inside.write_bytes(code)
        subprocess.run(
            [linker, "-shared", "-z", "noexecstack", "-o", str(out), str(inside)],
            check=True, capture_output=True, timeout=60,
        )  # fmt: skip
        _write(library, out.read_bytes())


def _compiled(llvm: Any) -> bytes:
    """One object file of all loops, which calls nothing but the system's reading and writing."""
    from numba import cfunc, float32, int32, int64, types, uint16

    from . import _merge_kernels as loops

    bits, singles = types.CPointer(uint16), types.CPointer(float32)
    six = (float32,) * 6
    wanted = {
        "linear_bits": (loops.linear_pair, (bits, bits, float32, float32, bits, int64)),
        "diagonal_bits_float32": (
            loops.diagonal_pair, (bits, bits, singles, singles, *six, bits, int64)
        ),
        "diagonal_bits_bits": (loops.diagonal_pair, (bits, bits, bits, bits, *six, bits, int64)),
        "linear_files": (
            loops.linear_files,
            (int32, int64) * 2 + (float32, float32, int32, int64) + (bits,) * 3 + (int64, int64),
        ),
        "diagonal_files": (
            loops.diagonal_files,
            (int32, int64) * 4 + six + (int32, int64) + (bits,) * 5 + (singles,) * 2
            + (int64, int64),
        ),
    }  # fmt: skip
    whole = llvm.parse_assembly("")
    for name, (loop, arguments) in wanted.items():
        made = cfunc(types.boolean(*arguments), error_model="numpy")(loop.py_func)
        module = llvm.parse_assembly(made.inspect_llvm())
        # cfunc adds a wrapper that reports Python's errors; the loop itself can raise none.
        inner = made.native_name.removeprefix("cfunc.")
        for function in module.functions:
            if function.name == inner:
                function.name = name
            elif not function.is_declaration:
                function.linkage = "internal"
        whole.link_in(module)
    machine = _machine(llvm)
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(whole, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options()))
    called = [f.name for f in whole.functions if f.is_declaration and f.name[:5] != "llvm."]
    outside = [name for name in called if name not in _SYSTEM]
    if outside:
        raise ValueError(f"the loops call {outside}")
    return bytes(machine.emit_object(whole))


def _machine(llvm: Any) -> Any:
    return llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3,
        reloc="pic", codemodel="small",
    )  # fmt: skip


def _loaded(llvm: Any, code: bytes) -> KeptCode:
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(llvm))
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return _functions(engine.get_function_address, engine)


def _functions_of(library: ctypes.CDLL) -> KeptCode:
    return _functions(lambda name: ctypes.cast(library[name], ctypes.c_void_p).value, library)


def _functions(address: Callable[[str], Any], owner: Any) -> KeptCode:
    place, number, size = ctypes.c_void_p, ctypes.c_float, ctypes.c_int64
    file = ctypes.c_int32
    kinds = {
        "linear_bits": (place, place, number, number, place, size),
        "diagonal_bits_float32": (place,) * 4 + (number,) * 6 + (place, size),
        "diagonal_bits_bits": (place,) * 4 + (number,) * 6 + (place, size),
        "linear_files": (file, size, file, size, number, number, file, size)
        + (place,) * 3 + (size, size),
        "diagonal_files": (file, size) * 4 + (number,) * 6 + (file, size) + (place,) * 7
        + (size, size),
    }  # fmt: skip
    functions = {}
    for name in _NAMES:
        # Numba's convention: status = f(address of the result, address of an error, arguments).
        raw = ctypes.CFUNCTYPE(ctypes.c_int32, place, place, *kinds[name])(address(name))
        functions[name] = _called(raw)
    return KeptCode(functions, owner)


def _called(raw: Any) -> Callable[..., bool]:
    def call(*arguments: Any) -> bool:
        result, error = ctypes.c_int64(0), ctypes.c_void_p()
        status = raw(ctypes.byref(result), ctypes.byref(error), *arguments)
        return status == 0 and bool(result.value & 1)

    return call
