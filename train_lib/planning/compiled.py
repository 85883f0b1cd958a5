"""A program compiled for a target, as numbers and text."""

import contextlib
import dataclasses
import hashlib
import os
import re
import time

import jax

from train_lib.planning.absent_devices import compiler_versions, held_back
from train_lib.planning.kept_programs import keep, kept
from train_lib.planning.targets import PlanTarget
from train_lib.runtime.errors import CompilerError
from train_lib.runtime.progress import compiling

_UNITS = {'': 1, 'K': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'T': 1 << 40, 'P': 1 << 50}
_PARTS = ('arguments', 'outputs', 'aliased', 'temporaries', 'code')
_FLAGS = ('XLA_FLAGS', 'LIBTPU_INIT_ARGS')  # variables that change what compilers make
_LONGEST = 160  # characters of an error
_SIZE = r'([\d.]+)([KMGTP]?)'


@dataclasses.dataclass(frozen=True)
class CompiledProgram:
    """What a compiler says of a program, per device.

    Attributes:
        memory: bytes: 'arguments', 'outputs', 'aliased' (outputs in the place of arguments),
            'temporaries', 'code'; {} where the program was too large to be compiled.
        refusal: the compiler's message where the program is too large for the target, else ''.
        seconds: that the compilation took.
        versions: {package: version} of JAX and of the compiler.
        text: the optimised HLO, '' where there is none.
        cached: whether all that was read from the cache.
    """

    memory: dict[str, int]
    refusal: str
    seconds: float
    versions: dict[str, str]
    text: str = dataclasses.field(default='', repr=False)
    cached: bool = False

    @property
    def needed(self) -> int:
        """Bytes per device that the program takes; where it was refused, those that the compiler
        named (0 if it named none)."""
        if self.memory:
            parts = self.memory
            return (parts['arguments'] + parts['outputs'] - parts['aliased']
                    + parts['temporaries'] + parts['code'])
        found = re.search(rf'Used {_SIZE} of', self.refusal) or re.search(
            rf'required for HLO temporaries \({_SIZE}\)', self.refusal)
        return _bytes(found[1], found[2]) if found else 0


def compile_for(target: PlanTarget, lowered: jax.stages.Lowered, *, cache: bool = True,
                what: str = 'the training step') -> CompiledProgram:
    """Compiles a lowered program with the compiler of the target, or finds it in the cache.

    Args:
        target: where it is meant to run.
        lowered: the program.
        cache: whether compiled programs are kept between plans.
        what: is compiled, for the log.

    Raises:
        CompilerError: the compiler fails, and not because the program is too large.
    """
    versions = compiler_versions(target.platform)
    key = hashlib.sha256('\n'.join([
        target.name, repr(target.chip), repr(versions), repr(target.compiler_options),
        *(f'{name}={os.environ[name]}' for name in _FLAGS if os.environ.get(name)),
        lowered.as_text()]).encode()).hexdigest()
    found = _kept(key) if cache else None
    if found is not None:
        return found
    began = time.perf_counter()
    memory: dict[str, int] = {}
    refusal = text = ''
    try:
        with (held_back() if target.chip else contextlib.nullcontext(),
              compiling(what=f'{what} for {target.name or "this machine"}', every=30)):
            compiled = lowered.compile(target.compiler_options)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        if 'RESOURCE_EXHAUSTED' not in str(error):
            raise CompilerError(
                f'The compiler for {target.name or "this machine"} cannot compile {what} '
                f'({_first_line(error)}): plan for another target, or try other versions than '
                f'{", ".join(map(" ".join, versions.items()))}.') from None
        refusal = str(error)
    else:
        sizes = compiled.memory_analysis()
        memory = dict(arguments=sizes.argument_size_in_bytes, outputs=sizes.output_size_in_bytes,
                      aliased=sizes.alias_size_in_bytes, temporaries=sizes.temp_size_in_bytes,
                      code=sizes.generated_code_size_in_bytes)
        text = compiled.as_text()
    made = CompiledProgram(memory, refusal, time.perf_counter() - began, versions, text)
    if cache:
        keep(key, dict(memory=memory, refusal=refusal, seconds=made.seconds, versions=versions),
             text)
    return made


def largest_allocations(refusal: str) -> list[tuple[int, str, str]]:
    """(bytes, shape, operation) of the largest allocations that a refusal of the TPU compiler
    lists; [] if it lists none.

    The list is that of libtpu 0.0.42.1: blocks of 'Size:', 'Operator:' and 'Shape:'."""
    found = []
    for block in re.split(r'\n\s*\d+\. (?=Size: )', refusal)[1:]:
        size = re.match(rf'Size: {_SIZE}', block)
        shape = re.search(r'Shape: (\w+\[[\d,]*\])', block)
        name = re.search(r'op_name="([^"]*)"', block)
        if size:
            found.append((_bytes(size[1], size[2]), shape[1] if shape else '',
                          name[1] if name else ''))
    return found


def _first_line(error: Exception) -> str:
    """What an error of a compiler says first, without its code, in at most 160 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = re.sub(r'^[A-Z_]+: ', '', lines[0] if lines else type(error).__name__).rstrip('.:')
    return said if len(said) <= _LONGEST else said[:_LONGEST - 3] + '...'


def _kept(key: str) -> CompiledProgram | None:
    found = kept(key)
    if found is None:
        return None
    numbers, text = found
    try:
        memory = {part: int(numbers['memory'][part]) for part in _PARTS if numbers['memory']}
        return CompiledProgram(memory, str(numbers['refusal']), float(numbers['seconds']),
                               dict(numbers['versions']), text, cached=True)
    except (KeyError, TypeError, ValueError):  # of another version, or damaged
        return None


def _bytes(number: str, unit: str) -> int:
    return int(float(number) * _UNITS[unit])
