"""Expected errors. Each message is one line that states the problem, then the fix."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager

_ADVICE = re.compile(
    r"Search for `\w+' in http|\w+ kernel errors might be|For debugging consider passing|"
    "Compile with `TORCH_USE_|Device-side assert"
)
"""Starts of the lines of advice that torch appends to GPU errors."""

_OUT_OF_MEMORY = (
    # torch.OutOfMemoryError: c10/cuda/CUDACachingAllocator.cpp.
    "CUDA out of memory",
    # cudaErrorMemoryAllocation, raised for a context, a graph or pinned memory: c10/cuda/CUDAException.cpp.
    "CUDA error: out of memory",
    # The same from the driver's API: AT_CUDA_DRIVER_CHECK in ATen/cuda/Exceptions.h.
    "CUDA driver error: out of memory",
    # ATen/cuda/CUDABlas.cpp (_cublasGetErrorEnum), ATen/cuda/Exceptions.h (AT_CUDNN_CHECK).
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    # cuDNN 9 (cudnn_graph.h): CUDNN_STATUS_INTERNAL_ERROR_{HOST,DEVICE}_ALLOCATION_FAILED.
    "_ALLOCATION_FAILED",
    # Failed assertion if memory is exhausted on a MIG device: c10/cuda/CUDACachingAllocator.cpp.
    "NVML_SUCCESS == ",
    # Main memory: c10/core/impl/alloc_cpu.cpp.
    "can't allocate memory",
)
"""Parts of messages that mean that memory is exhausted, with their sources in torch and cuDNN."""

_OUT_OF_MEMORY_AFTER_CHECK = (
    # Libraries allocate a handle when they are first used. If this fails, some say that they are not
    # initialized. ATen/cuda/CUDABlas.cpp (_cublasGetErrorEnum), ATen/cuda/Exceptions.h (AT_CUDNN_CHECK).
    "CUBLAS_STATUS_NOT_INITIALIZED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    # ATen/native/cudnn/Conv_v8.cpp tries all engines, and hides why they fail.
    "unable to find an engine to execute this computation",
)
"""Parts of messages that mean that memory is exhausted if the GPU has passed its check (`prometar.device`).
In the check itself, they may mean that a library does not support the GPU."""

MAX_LINE_LENGTH = 160
"""Length in characters up to which `first_line` keeps a whole line."""

RESUME = "Rerun the same command to resume."
FIX_AND_RESUME = "Fix the cause, then rerun the same command to resume."


class PrometarError(Exception):
    """Base class of expected errors. A command prints the joined `args`, and exits with `exit_code`."""

    exit_code = 1

    def __str__(self) -> str:
        return " ".join(map(str, self.args))


class UserError(PrometarError):
    """Wrong usage or missing input."""

    exit_code = 2


class WorkError(PrometarError):
    """Failure despite correct usage, e.g. a failed download, a corrupt image or a non-finite loss."""


class InfrastructureError(PrometarError):
    """Failure of a disk, database, store or machine. It stops a study, and no trial counts as failed."""


class InputError(InfrastructureError):
    """Data, images or weights that a worker's machine cannot read. They may be readable elsewhere."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or else the error's class name.

    A line of more than 160 characters is cut after a word, and ends with "...".
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    line = lines[0]
    if len(line) <= MAX_LINE_LENGTH:
        return line
    shortened = line[:MAX_LINE_LENGTH]
    whole_words, _, _ = shortened.rpartition(" ")
    return f"{whole_words or shortened} ..."


def last_line(text: str) -> str:
    """Return the last line of a traceback, without the advice that torch appends to GPU errors.

    Example:
        >>> last_line("Traceback:\\nAcceleratorError: CUDA error: some\\nFor debugging consider passing A=1")
        'AcceleratorError: CUDA error: some'
    """
    for line in reversed(text.splitlines()):
        stripped = line.strip()
        if stripped and not _ADVICE.match(stripped):
            return stripped
    return ""


def is_accelerator_error(error: BaseException) -> bool:
    """Return True for errors of CUDA and its libraries, such as out of memory. Works without importing torch.

    Example:
        >>> is_accelerator_error(RuntimeError("CUDA error: uncorrectable ECC error encountered"))
        True
    """
    if type(error).__module__ == "torch" and type(error).__name__ in {"AcceleratorError", "OutOfMemoryError"}:
        return True
    if not isinstance(error, RuntimeError):
        return False
    prefixes = ("CUDA error: ", "CUDA driver error: ", "cuDNN error: ", "cusolver error: ")
    return is_out_of_memory(error) or str(error).startswith(prefixes)


def is_out_of_memory(error: BaseException, *, is_checked: bool = True) -> bool:
    """Return True if main memory or GPU memory is exhausted. Works without importing torch.

    torch.OutOfMemoryError covers only torch's allocator. Its libraries raise other errors.

    Args:
        is_checked: True if the GPU has passed its check (`prometar.device.gpu_problem`).

    Example:
        >>> is_out_of_memory(RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"))
        True
    """
    if isinstance(error, MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    parts = _OUT_OF_MEMORY
    if is_checked:
        parts += _OUT_OF_MEMORY_AFTER_CHECK
    return any(part in str(error) for part in parts)


def one_line(text: str) -> str:
    """Replace newlines with spaces. Write characters that could control the terminal as escapes.

    Example:
        >>> print(one_line("a\\nb\\x1b[2J"))
        a b\\x1b[2J
    """
    line = text.replace("\n", " ")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


@contextmanager
def suppress_logs() -> Iterator[None]:
    """Suppress log records up to level ERROR, e.g. records of failed download attempts."""
    previous = logging.root.manager.disable
    logging.disable(max(previous, logging.ERROR))
    try:
        yield
    finally:
        logging.disable(previous)


@contextmanager
def convert_download_errors(target: str, fix: str) -> Iterator[None]:
    """Convert all exceptions of a download to `WorkError`.

    Args:
        target: Name of the downloaded file or model, for the message.
        fix: Last sentence of the message, which says what to do.

    Raises:
        WorkError: the download failed.
    """
    try:
        with suppress_logs():
            yield
    except Exception as error:  # download clients raise errors of several libraries
        raise WorkError(f"Cannot download {target} ({first_line(_root_cause(error))}). {fix}") from None


def _root_cause(error: BaseException) -> BaseException:
    """Return the exception at the start of a chain. Later exceptions often quote it, and are longer."""
    while True:
        earlier = error.__cause__ or error.__context__
        if earlier is None:
            return error
        error = earlier
