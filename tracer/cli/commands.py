"""The command line: ``fxplain inspect``, ``explain``, ``explain-all``, ``check``, ``diff``, ``methods``,
``evaluate``, ``serve`` and ``demo``."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from fxplain.cli.options import Ask, Form, reported

app = typer.Typer(
    name="fxplain",
    help="Explain a prediction of any PyTorch transformer.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

MODEL_HELP = (
    "A Hugging Face folder or id, torchvision:NAME, timm:NAME, path/to/file.py:FACTORY, or a FILE.pt2 "
    "saved by torch.export.save."
)
Model = Annotated[str, typer.Argument(help=MODEL_HELP, metavar="MODEL", show_default=False)]
Image = Annotated[
    list[Path] | None,
    typer.Option("--image", help="A picture; give it again for a batch.", show_default=False),
]
Text = Annotated[
    list[str] | None, typer.Option("--text", help="A text; give it again for a batch.", show_default=False)
]
Input = Annotated[
    Path | None,
    typer.Option("--input", help="Tensors: .pt, .npz or .safetensors; joins --image and --text by name."),
]
DecoderText = Annotated[
    str | None,
    typer.Option("--decoder-text", help="What the decoder of an encoder-decoder has said so far."),
]
Pair = Annotated[
    list[str] | None,
    typer.Option("--pair", help="A second text to each --text, for models of pairs.", show_default=False),
]
Chat = Annotated[
    str | None,
    typer.Option(
        "--chat",
        help="Messages in place of --text: a .json file of roles and contents, or what a user says.",
        show_default=False,
    ),
]
Audio = Annotated[
    list[Path] | None,
    typer.Option("--audio", help="A sound (.wav); give it again for a batch.", show_default=False),
]
Video = Annotated[
    list[Path] | None,
    typer.Option(
        "--video", help="A video: .gif, or others with fxplain[video]; again for a batch.", show_default=False
    ),
]
Target = Annotated[
    str | None,
    typer.Option(
        "--target",
        "-t",
        help="What to explain: an index (3), a name ('tabby cat'), or indices into the output (7,3 for "
        "query 7, class 3). By default the largest value.",
        show_default=False,
    ),
]
Output = Annotated[
    str | None,
    typer.Option("--output", help="Name of the model's output; by default logits or the first."),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pickles, which can run code. For files you trust.")
]
AllowRemoteCode = Annotated[
    bool, typer.Option("--allow-remote-code", help="Run modelling code that comes with a model you trust.")
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Build the architecture alone; no weights are fetched.")
]
Device = Annotated[str | None, typer.Option("--device", help="Where to run, e.g. cuda; by default the CPU.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error, and warnings.")]


def _ask(
    model: str,
    image: list[Path] | None,
    text: list[str] | None,
    input_file: Path | None,
    decoder_text: str | None = None,
    pair: list[str] | None = None,
    chat: str | None = None,
    audio: list[Path] | None = None,
    video: list[Path] | None = None,
) -> Ask:
    """The model and the inputs as they were named."""
    ask = Ask(model, tuple(image or ()), tuple(text or ()), input_file, decoder_text)
    return replace(
        ask, pairs=tuple(pair or ()), chat=chat, audio=tuple(audio or ()), video=tuple(video or ())
    )


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fxplain {version('fxplain')}")
        raise typer.Exit


@app.callback()
def _root(
    show_version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop."),
    ] = False,
) -> None:
    pass


@app.command()
def inspect(
    model: Model,
    image: Image = None,
    text: Text = None,
    input_file: Input = None,
    decoder_text: DecoderText = None,
    pair: Pair = None,
    chat: Chat = None,
    audio: Audio = None,
    video: Video = None,
    target: Target = None,
    output: Output = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help="Of the relevance on the page; one that carries rows.")
    ] = "relevancy",
    form: Annotated[
        Form | None, typer.Option("--format", help="By default the suffix of --out, or table.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write there instead of printing.")] = None,
    why: Annotated[
        str | None,
        typer.Option(
            "--why", metavar="NODE", help="Say of one node of the graph why it is taken for what it is."
        ),
    ] = None,
    allow_pickle: AllowPickle = False,
    allow_remote_code: AllowRemoteCode = False,
    random_weights: RandomWeights = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """List every attention of a model, what is not attention and why, or draw its attention graph."""
    with reported(debug):
        from fxplain.cli.inspect import Wanted, run_inspect

        ask = _ask(model, image, text, input_file, decoder_text, pair, chat, audio, video)
        ask = ask.with_options(allow_pickle, allow_remote_code, random_weights, device)
        run_inspect(ask, form, out, why, Wanted(target, output, method))


@app.command()
def explain(
    model: Model,
    image: Image = None,
    text: Text = None,
    input_file: Input = None,
    decoder_text: DecoderText = None,
    pair: Pair = None,
    chat: Chat = None,
    audio: Audio = None,
    video: Video = None,
    axis: Annotated[
        str | None,
        typer.Option(
            "--axis",
            help="What the places of a series in --input are counted in (hour): it is drawn below its "
            "relevance.",
            show_default=False,
        ),
    ] = None,
    target: Target = None,
    contrast: Annotated[
        str | None,
        typer.Option(
            "--contrast",
            help="Explain why the target and not this one: an index or a name.",
            show_default=False,
        ),
    ] = None,
    generate: Annotated[
        int | None,
        typer.Option(
            "--generate",
            min=1,
            help="Let the model answer with so many tokens at most, and explain each of them.",
            show_default=False,
        ),
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option(
            "--answer",
            help="Explain each token of this answer, in place of the model's own; a space begins a word.",
            show_default=False,
        ),
    ] = None,
    settings: Annotated[
        str | None,
        typer.Option(
            "--settings",
            help="With --generate: JSON for the model's own generate ('{\"num_beams\": 4}').",
            show_default=False,
        ),
    ] = None,
    into: Annotated[
        str | None,
        typer.Option("--into", help="The input that the answer goes on, by name.", show_default=False),
    ] = None,
    log_probability: Annotated[
        bool, typer.Option("--log-probability", help="Explain the logarithm of the probability.")
    ] = False,
    top: Annotated[
        int | None,
        typer.Option(
            "--top",
            min=1,
            help="Explain so many of the likeliest answers: classes, next words, objects that were detected.",
            show_default=False,
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", help="With --top: the least probability; 0.5 for detectors."),
    ] = None,
    point: Annotated[
        str | None,
        typer.Option(
            "--point",
            help="Of a segmentation: a point of the picture, as parts of width and height (0.4,0.7).",
            show_default=False,
        ),
    ] = None,
    colours: Annotated[
        str, typer.Option("--colours", help="A colour map of matplotlib for pictures.", show_default=False)
    ] = "",
    opacity: Annotated[
        float, typer.Option("--opacity", min=0, max=1, help="Of the most relevant place of a picture.")
    ] = 0.75,
    bare: Annotated[bool, typer.Option("--bare", help="Draw the heat map without the picture.")] = False,
    stretch: Annotated[
        bool, typer.Option("--stretch", help="Use all colours, also where relevance is nearly even.")
    ] = False,
    method: Annotated[
        str,
        typer.Option(
            "--method",
            "-m",
            help="One of those that fxplain methods lists, or several with commas: these are written side by "
            "side.",
        ),
    ] = "auto",
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            help="Attentions that take part: a layer (3), a range (8: or 2:5), several (0,1); negative ones "
            "count from the last. By default all.",
            show_default=False,
        ),
    ] = None,
    output: Output = None,
    mode: Annotated[
        str, typer.Option("--mode", help="auto, rows, matrix, or checkpoint (long inputs).")
    ] = "auto",
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            "-o",
            help="A file (.png, .html, .json, .npz), or a name without suffix for all that fit. Give it "
            "again for several.",
            show_default=False,
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run the model beside its graph on these inputs, too.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Hold what labels say against what the graph does, as check does."),
    ] = False,
    allow_pickle: AllowPickle = False,
    allow_remote_code: AllowRemoteCode = False,
    random_weights: RandomWeights = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Explain one prediction: an overlay for pictures, coloured text for texts, and the numbers as JSON."""
    with reported(debug):
        from fxplain.cli.explain import Answering, Wanted, run_explain
        from fxplain.display import Look

        ask = _ask(model, image, text, input_file, decoder_text, pair, chat, audio, video)
        ask = replace(ask, axis=axis).with_options(allow_pickle, allow_remote_code, random_weights, device)
        wanted = Wanted(
            target, method, output, layers, contrast, cast(Any, mode), check, top, threshold, point,
            answer=Answering(generate, answer, settings, into), log_probability=log_probability,
            verify=verify,
        )  # fmt: skip
        run_explain(ask, wanted, tuple(out or ()), Look(colours, opacity, bare, stretch))


@app.command("explain-all")
def explain_all(
    model: Model,
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder of pictures or of files of tensors, or a file with a text on each line.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder for the results.", show_default=False)],
    decoder_text: DecoderText = None,
    target: Target = None,
    method: Annotated[str, typer.Option("--method", "-m", help="One of fxplain methods.")] = "auto",
    layers: Annotated[
        str | None, typer.Option("--layers", help="As for explain.", show_default=False)
    ] = None,
    output: Output = None,
    batch_size: Annotated[int, typer.Option("--batch-size", help="How many go together, of one size.")] = 8,
    gallery: Annotated[
        int, typer.Option("--gallery", min=0, help="How many inputs gallery.html shows; 0: no such page.")
    ] = 100,
    keep_errors: Annotated[
        bool, typer.Option("--keep-errors", help="Go on where an input cannot be explained.")
    ] = False,
    allow_pickle: AllowPickle = False,
    allow_remote_code: AllowRemoteCode = False,
    random_weights: RandomWeights = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Explain every picture, text or file of tensors into a folder; run again, it goes on from there."""
    with reported(debug):
        from fxplain.cli.dataset import is_first, run_dataset
        from fxplain.cli.explain import Wanted
        from fxplain.cli.gallery import write_gallery

        ask = Ask(model, decoder_text=decoder_text)
        ask = ask.with_options(allow_pickle, allow_remote_code, random_weights, device)
        found = run_dataset(ask, Wanted(target, method, output, layers), data, out, batch_size, keep_errors)
        if gallery and is_first():
            typer.echo(f"wrote     {write_gallery(found, out, gallery, decoder_text)}")


@app.command()
def check(
    model: Model,
    image: Image = None,
    text: Text = None,
    input_file: Input = None,
    decoder_text: DecoderText = None,
    pair: Pair = None,
    chat: Chat = None,
    audio: Audio = None,
    video: Video = None,
    target: Target = None,
    output: Output = None,
    allow_pickle: AllowPickle = False,
    allow_remote_code: AllowRemoteCode = False,
    random_weights: RandomWeights = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Say what of a model is understood and what is not; the exit code is 1 if anything is not."""
    with reported(debug):
        from fxplain.cli.check import run_check

        ask = _ask(model, image, text, input_file, decoder_text, pair, chat, audio, video)
        ask = ask.with_options(allow_pickle, allow_remote_code, random_weights, device)
        run_check(ask, target, output)


@app.command()
def diff(
    a: Annotated[str, typer.Argument(help=f"{MODEL_HELP} Or a FILE.json of inspect.", show_default=False)],
    b: Annotated[str, typer.Argument(help="The same.", show_default=False)],
    image: Image = None,
    text: Text = None,
    input_file: Input = None,
    decoder_text: DecoderText = None,
    pair: Pair = None,
    chat: Chat = None,
    audio: Audio = None,
    video: Video = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    allow_pickle: AllowPickle = False,
    allow_remote_code: AllowRemoteCode = False,
    random_weights: RandomWeights = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Show how the attention graphs of two models differ; the exit code is 0 if not, 1 if so, 2 on error."""
    with reported(debug, code=2):
        from fxplain.cli.diff import run_diff

        given = (image, text, input_file, decoder_text, pair, chat, audio, video)
        asks = (_ask(name, *given) for name in (a, b))
        options = (allow_pickle, allow_remote_code, random_weights, device)
        left, right = (ask.with_options(*options) for ask in asks)
        run_diff(left, right, as_json)


@app.command()
def evaluate(
    model: Annotated[
        str | None,
        typer.Argument(
            help=f"{MODEL_HELP} Without it the demo's model is evaluated, on pictures that come along.",
            metavar="[MODEL]",
            show_default=False,
        ),
    ] = None,
    image: Image = None,
    text: Text = None,
    input_file: Input = None,
    decoder_text: DecoderText = None,
    pair: Pair = None,
    chat: Chat = None,
    audio: Audio = None,
    video: Video = None,
    target: Target = None,
    output: Output = None,
    method: Annotated[
        str, typer.Option("--method", "-m", help="Methods with commas; random is always there.")
    ] = "relevancy,rollout,raw_attention,attention_gradcam,random",
    steps: Annotated[
        str,
        typer.Option(
            "--steps", help="Which parts are removed: even (0 to 100 %), pixels (10 to 90 %), tokens."
        ),
    ] = "even",
    score: Annotated[
        str,
        typer.Option(
            "--score",
            help="What is watched: accuracy (the same class as before) or target (the score itself).",
        ),
    ] = "accuracy",
    count: Annotated[int, typer.Option("--count", min=1, help="Questions of the demo, at most 200.")] = 100,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Samples at a time.")] = 50,
    seed: Annotated[int, typer.Option("--seed", help="Of the confidence intervals.")] = 0,
    out: Annotated[
        list[Path] | None,
        typer.Option(
            "--out",
            "-o",
            help="A file: .json (numbers), .md (tables), .png (curves). Again for several.",
            show_default=False,
        ),
    ] = None,
    allow_pickle: AllowPickle = False,
    allow_remote_code: AllowRemoteCode = False,
    random_weights: RandomWeights = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Remove what methods call relevant, most or least relevant first, and see how soon the model minds."""
    with reported(debug):
        from fxplain.cli.evaluate import Wanted, run_evaluate

        ask = None
        if model is not None:
            ask = _ask(model, image, text, input_file, decoder_text, pair, chat, audio, video)
            ask = ask.with_options(allow_pickle, allow_remote_code, random_weights, device)
        run_evaluate(ask, Wanted(method, steps, score, target, output, count, batch, seed), tuple(out or ()))


@app.command()
def methods(debug: Debug = False) -> None:
    """List the methods that --method takes."""
    with reported(debug):
        from fxplain.cli.methods import table_of_methods

        typer.echo(table_of_methods())


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for what the demo writes.")] = Path(
        "fxplain-demo"
    ),
    debug: Debug = False,
) -> None:
    """Explain two objects on one picture with a small model that comes along; needs no network."""
    with reported(debug):
        from fxplain.cli.demo import run_demo

        run_demo(out)


@app.command()
def serve(
    model: Model,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 0,
    allow_pickle: AllowPickle = False,
    allow_remote_code: AllowRemoteCode = False,
    random_weights: RandomWeights = False,
    device: Device = None,
    debug: Debug = False,
) -> None:
    """Open a page on this machine: type a text or drop a picture, and look. Needs fxplain[serve]."""
    with reported(debug):
        from fxplain.cli.serve import run_serve

        run_serve(Ask(model).with_options(allow_pickle, allow_remote_code, random_weights, device), port)


def main() -> None:
    """Entry point of the ``fxplain`` command."""
    app(prog_name="fxplain")
