"""A program compiled for a target, as numbers and text, kept between plans."""

import dataclasses
import gzip
import hashlib
import importlib.metadata
import json
import re
import time
from pathlib import Path

import jax
import jaxlib

from input_pipeline.atomic_files import write_json
from train_lib.planning.targets import Target
from train_lib.runtime.cache_folder import cache_folder

_UNITS = {'': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40}


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """What a compiler says of a program, per device.

    Attributes:
        memory: bytes: 'arguments', 'outputs', 'aliased' (outputs in the place of arguments),
            'temporaries', 'code'; {} where the program was too large to be compiled.
        refusal: the compiler's message where the program is too large for the target, else ''.
        seconds: that the compilation took.
        text: the optimised HLO, '' where there is none.
        cached: whether all that was read from the cache.
    """

    memory: dict[str, int]
    refusal: str
    seconds: float
    text: str = ''
    cached: bool = False

    @property
    def needed(self) -> int:
        """Bytes per device that the program takes; where it was refused, those that the compiler
        named (0 if it named none)."""
        if self.memory:
            parts = self.memory
            return (parts['arguments'] + parts['outputs'] - parts['aliased']
                    + parts['temporaries'] + parts['code'])
        found = re.search(r'Used ([\d.]+)([KMGT]?) of', self.refusal) or re.search(
            r'required for HLO temporaries \(([\d.]+)([KMGT]?)\)', self.refusal)
        return int(float(found[1]) * _UNITS[found[2]]) if found else 0


def compile_for(target: Target, lowered: jax.stages.Lowered) -> CompiledProgram:
    """Compiles a lowered program with the compiler of the target, or finds it in the cache."""
    key = hashlib.sha256('\n'.join([target.name, *_versions(target), repr(target.compiler_options),
                                    lowered.as_text()]).encode()).hexdigest()
    folder = Path(cache_folder()) / 'plans'
    numbers, text = folder / f'{key}.json', folder / f'{key}.hlo.gz'
    if numbers.exists() and text.exists():
        return CompiledProgram(**json.loads(numbers.read_text()), cached=True,
                               text=gzip.decompress(text.read_bytes()).decode())
    began = time.perf_counter()
    try:
        compiled = lowered.compile(target.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise
        made = CompiledProgram({}, str(error), time.perf_counter() - began)
    else:
        found = compiled.memory_analysis()
        memory = dict(arguments=found.argument_size_in_bytes, outputs=found.output_size_in_bytes,
                      aliased=found.alias_size_in_bytes, temporaries=found.temp_size_in_bytes,
                      code=found.generated_code_size_in_bytes)
        made = CompiledProgram(memory, '', time.perf_counter() - began, compiled.as_text())
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    text.write_bytes(gzip.compress(made.text.encode(), 6))
    write_json(numbers, dict(memory=made.memory, refusal=made.refusal, seconds=made.seconds))
    return made


def _versions(target: Target) -> list[str]:
    packages = {'tpu': ['libtpu'], 'cuda': ['jax-cuda13-plugin']}.get(target.platform, [])
    found = [f'jax {jax.__version__}', f'jaxlib {jaxlib.__version__}']
    for package in packages:
        try:
            found.append(f'{package} {importlib.metadata.version(package)}')
        except importlib.metadata.PackageNotFoundError:
            found.append(package)
    return found
