"""Where the features of images come from: a function, a TorchScript or ONNX file, or a model of another package."""

import hashlib
import inspect
import pkgutil
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffmem.errors import DataError
from diffmem.measures.declared import MODELS, DeclaredSpace

Source = tuple[Callable[[Any], Any], str]
"""What makes features of images [n, c, h, w], uint8 of a function and else float32, and the hash of its content."""


def open_source(space: DeclaredSpace, device: torch.device) -> Source:
    """Return what makes the features of a space, on a device, and the hash of it; DataError where it cannot be had."""
    features = space.settings.features
    package, _, name = features.partition(":")
    if space.function is not None:
        return space.function, _hash_of_function(space.function, features)
    if package in MODELS and name:
        open_model = _timm if package == "timm" else _transformers
        return _model(space, open_model, name, device)
    if ":" in features and not _path(space, features).exists():
        function = _function(space)
        return function, _hash_of_function(function, features)
    return _file(space, device)


Stamp = tuple[str, int, int] | None
"""What tells a file from what was there before: its place, time and size; of others, nothing."""


def stamp_of(space: DeclaredSpace) -> Stamp:
    """Return the stamp of a space's file; None where it has none."""
    path = _path(space, space.settings.features)
    try:
        found = path.stat()
    except OSError:
        return None
    return str(path.resolve()), found.st_mtime_ns, found.st_size


def is_function(space: DeclaredSpace) -> bool:
    """Return whether a space is a function, which is given images as they are, uint8."""
    features = space.settings.features
    named = ":" in features and features.partition(":")[0] not in MODELS
    return space.function is not None or (named and not _path(space, features).exists())


def _path(space: DeclaredSpace, features: str) -> Path:
    return Path(space.folder) / Path(features).expanduser()


# --- functions -----------------------------------------------------------------------------------------


def _function(space: DeclaredSpace) -> Callable[[Any], Any]:
    """Return a function by `module:function`, of a module on Python's path or in the folder of the space."""
    name, folder = space.settings.features, str(Path(space.folder).resolve())
    if folder not in sys.path:
        sys.path.append(folder)  # and left there: the function may import others of its folder when it is called
    try:
        function = pkgutil.resolve_name(name)
    except ModuleNotFoundError as error:
        raise DataError(f"{space.label}: no module {error.name!r} on Python's path or in {space.folder}") from error
    except AttributeError as error:
        raise DataError(f"{space.label}: {error}") from error
    except Exception as error:  # whatever the module does when it is loaded
        raise DataError(f"{space.label}: loading it failed: {_said(error)}") from error
    if not callable(function):
        raise DataError(f"{space.label}: it is a {type(function).__name__}, not a function of images")
    found: Callable[[Any], Any] = function
    return found


def _hash_of_function(function: Callable[[Any], Any], name: str) -> str:
    """Return the hash of a function's source, or of its class's; of its name where it has none."""
    for part in (function, type(function)):
        try:
            return _hash(inspect.getsource(part).encode())
        except (OSError, TypeError):
            continue
    return _hash(name.encode())


# --- files ---------------------------------------------------------------------------------------------


def _file(space: DeclaredSpace, device: torch.device) -> Source:
    path = _path(space, space.settings.features)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"{space.label}: {path} cannot be read: {error.strerror or error}; features are a file, module:function, "
            "timm:NAME or transformers:NAME"
        ) from error
    if path.suffix == ".onnx":
        return _onnx(space, path, device), _hash(content)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit")  # deprecated, but such files are made
        try:
            module = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise DataError(
                f"{space.label}: {path} is no TorchScript file; torch.jit.script(model).save(path) makes one"
            ) from error
    return module.eval(), _hash(content)


def _onnx(space: DeclaredSpace, path: Path, device: torch.device) -> Callable[[Tensor], Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise DataError(f"{space.label}: needs onnxruntime, which is not installed; pip install onnxruntime") from error
    providers = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    there = [each for each in providers if each in onnxruntime.get_available_providers()]
    try:
        session = onnxruntime.InferenceSession(str(path), providers=[*there, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each reason
        raise DataError(f"{space.label}: {path} is no ONNX file: {_said(error)}") from error
    given = session.get_inputs()[0].name
    return lambda images: session.run(None, {given: images.cpu().numpy()})[0]


# --- models of other packages --------------------------------------------------------------------------


def _model(space: DeclaredSpace, open_model: Callable[[str, str], Any], name: str, device: torch.device) -> Source:
    try:
        model = open_model(name, space.folder)
    except ImportError as error:
        package = space.settings.features.partition(":")[0]
        missing = error.name or package
        raise DataError(f"{space.label}: needs {missing}, which is not installed; pip install {package}") from error
    except Exception as error:  # whatever the package says of a name, a download or a file
        raise DataError(f"{space.label}: the model cannot be loaded: {_said(error)}") from error
    content = _hash_of_weights(model.state_dict())
    module = model.to(device).eval()
    return lambda images: _vector(module(images)), content


def _timm(name: str, _folder: str) -> Any:
    import timm

    return timm.create_model(name, pretrained=True, num_classes=0)  # pooled features


def _transformers(name: str, folder: str) -> Any:
    import transformers

    beside = Path(folder) / name
    model = transformers.AutoModel.from_pretrained(str(beside) if beside.is_dir() else name)
    return getattr(model, "vision_model", model)  # of CLIP and the like, the part for images


def _vector(found: Any) -> Any:
    """Return the features of an output of transformers: pooled ones, or the first token's; of others, it itself."""
    if isinstance(found, Tensor):
        return found
    pooled = getattr(found, "pooler_output", None)
    return found.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)


def _hash_of_weights(weights: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return f"sha256:{digest.hexdigest()[:32]}"


def _hash(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()[:32]}"


def _said(error: BaseException) -> str:
    """Return the first line of an error, with its kind."""
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"
