"""Files and folders: checked safetensors, atomic writes, output folders that never lie."""

from .arrays import (
    inspect_file as inspect_file,
    load_arrays as load_arrays,
    save_arrays as save_arrays,
)
from .atomic import (
    read_json as read_json,
    write_bytes as write_bytes,
    write_json as write_json,
    write_text as write_text,
)
from .facts import peak_memory_mib as peak_memory_mib, plain as plain, versions as versions
from .output_folder import OutputFolder as OutputFolder, verify_folder as verify_folder
