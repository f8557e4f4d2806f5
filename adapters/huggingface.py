"""A Hugging Face folder or id: configuration -> class -> weights, with the processor from the same place.

Weights come from safetensors unless pickles are allowed; code that lies beside the weights never runs unless
that is allowed. A folder that exists is read without a look at the network.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fxplain.adapters.encoding import encoder
from fxplain.adapters.examples import example_inputs
from fxplain.adapters.loaded import Loaded, LoadOptions
from fxplain.adapters.names import near, target_names
from fxplain.adapters.processors import load_processors
from fxplain.errors import LoadError, UnsafeFileError, first_line

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_NETWORK = "the network was needed; HF_HUB_OFFLINE=1 uses the cache alone"
_PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")


def load(text: str, options: LoadOptions) -> Loaded:
    """Load the model and what turns pictures and texts into its inputs.

    Raises:
        LoadError: no such folder or id, no configuration, an unknown class, missing or broken weights.
        UnsafeFileError: pickled weights or modelling code, and neither was allowed.
    """
    folder = _folder(text)
    where = str(folder) if folder else text
    common = {"local_files_only": folder is not None, "trust_remote_code": options.allow_remote_code}
    with _quiet():
        config = _config(where, common)
        made = _class(config, where, options)
        model, notes = _weights(made, config, where, folder, common, options)
        processors = load_processors(where, model, common)
    return Loaded(
        model,
        folder.name if folder else text.rpartition("/")[2],
        encode=encoder(model, processors),
        show=processors.show(model),
        dummy=lambda: example_inputs(model, processors),
        labels=target_names(model, processors),
        notes=(*notes, *processors.notes),
        processors=processors,
    )


def _folder(text: str) -> Path | None:
    """The local folder meant, or None if the text is an id on the hub."""
    path = Path(text).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "an empty folder"
            raise LoadError(
                "the folder has no configuration, so it does not say what model it holds",
                where=str(path),
                expected="config.json and model.safetensors, as save_pretrained writes them",
                found=found,
            )
        return path.resolve()
    if path.is_file():
        beside = (path.parent / "config.json").is_file()
        raise LoadError(
            "the file is no model",
            where=str(path),
            expected="a folder with config.json and model.safetensors, FILE.py:FACTORY, or FILE.pt2",
            found=f"a {path.suffix or 'file without suffix'} file of {path.stat().st_size} bytes",
            hint=f"give the folder: {path.parent}" if beside else "weights alone do not say the architecture",
        )
    if not _HUB_ID.fullmatch(text) or text.startswith((".", "/")):
        raise LoadError("there is no such file or folder", where=text)
    return None


def _config(where: str, common: dict[str, Any]) -> Any:
    import transformers

    if not common["trust_remote_code"]:
        _refuse_code(where, common)
    try:
        return transformers.AutoConfig.from_pretrained(where, **common)
    except Exception as error:  # network, missing files, broken JSON, unknown types: none gives a model
        raise LoadError(
            "the configuration cannot be loaded",
            where=where,
            expected="a folder, or the id of a model on the hub, with a config.json that names a known model",
            found=first_line(error),
            hint=_NETWORK if _is_network(error) else None,
        ) from error


def _refuse_code(where: str, common: dict[str, Any]) -> None:
    """Models whose class lies beside the weights need --allow-remote-code; say so before all else."""
    import transformers

    try:
        local = common["local_files_only"]
        raw, _ = transformers.PretrainedConfig.get_config_dict(where, local_files_only=local)
    except Exception:  # the loading that follows tells what is wrong
        return
    if raw.get("auto_map") and not _known(raw.get("architectures")):
        raise UnsafeFileError(
            "the model brings its own modelling code, and loading it would run that",
            where=where,
            expected="a class of transformers",
            found=", ".join(str(value) for value in raw["auto_map"].values()),
            hint="read the code; if you trust it, add --allow-remote-code",
        )


def _known(architectures: Any) -> bool:
    import transformers

    return bool(architectures) and all(hasattr(transformers, name) for name in architectures)


def _class(config: Any, where: str, options: LoadOptions) -> Any:
    """The class named by the configuration; the bare model of the configuration if none is named."""
    import transformers

    names = list(getattr(config, "architectures", None) or ())
    found = next((getattr(transformers, name) for name in names if hasattr(transformers, name)), None)
    if found is not None:
        return found
    auto_map = getattr(config, "auto_map", None) or {}
    if names and options.allow_remote_code and auto_map:
        automatic = next(name for name in auto_map if name.startswith("AutoModel"))
        return getattr(transformers, automatic)
    if names:
        hint = near(names[0], (name for name in dir(transformers) if name[0].isupper()))
        raise LoadError(
            "transformers has no class of the name in the configuration",
            where=where,
            expected=f"one of {hint}" if hint else "a class of transformers",
            found=names[0],
        )
    return transformers.AutoModel


def _weights(
    made: Any, config: Any, where: str, folder: Path | None, common: dict[str, Any], options: LoadOptions
) -> tuple[Any, list[str]]:
    if folder is not None and not options.allow_pickle and not options.random_weights:
        _refuse_pickles(folder)
    if options.random_weights:
        return _random(made, config, where), ["the weights are random"]
    safe = None if options.allow_pickle else True
    try:
        model, report = made.from_pretrained(
            where, config=config, use_safetensors=safe, output_loading_info=True, **common
        )
    except Exception as error:  # truncated files, wrong shapes, a network that fails
        raise LoadError(
            "the weights cannot be loaded",
            where=where,
            expected="whole safetensors files that fit the configuration",
            found=first_line(error),
            hint=_weights_hint(error, options),
        ) from error
    return model, _load_notes(report, config, made)


def _random(made: Any, config: Any, where: str) -> Any:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            return made.from_config(config) if hasattr(made, "from_config") else made(config)
        except Exception as error:  # a configuration that does not fit its class
            raise LoadError(
                "the model cannot be built from its configuration", where=where, found=first_line(error)
            ) from error


def _refuse_pickles(folder: Path) -> None:
    safe = any(folder.glob("*.safetensors")) or any(folder.glob("*.safetensors.index.json"))
    pickled = [name for name in _PICKLED_WEIGHTS if (folder / name).is_file()]
    if pickled and not safe:
        raise UnsafeFileError(
            "the weights are a pickle, which can run code when it is read",
            where=str(folder / pickled[0]),
            expected="model.safetensors",
            found=pickled[0],
            hint="convert them with save_pretrained, or, if you trust the file, add --allow-pickle",
        )


def _weights_hint(error: Exception, options: LoadOptions) -> str | None:
    if _is_network(error):
        return _NETWORK
    if "safetensors" in str(error) and not options.allow_pickle and isinstance(error, OSError):
        return "if there are only pickled weights and you trust them, add --allow-pickle"
    return None


def _is_network(error: BaseException) -> bool:
    return "connect" in str(error).lower()


def _load_notes(report: Any, config: Any, made: Any) -> list[str]:
    missing = sorted(report.get("missing_keys", ()))
    notes = []
    if missing:
        some = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        notes.append(f"{len(missing)} tensors are not in the file and have random values: {some}")
    if not getattr(config, "architectures", None):
        notes.append(f"the configuration names no class; loaded with {made.__name__}, without a head")
    return notes


@contextmanager
def _quiet() -> Iterator[None]:
    """No chatter of transformers while loading: what matters of it comes back as notes or errors."""
    logging: Any = importlib.import_module("transformers.utils.logging")

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
