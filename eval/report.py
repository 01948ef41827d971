"""One HTML file that shows runs and results, needs nothing else, and can be sent to anybody.

Owns the order of the sections and what is said to be absent. `python -m eval.report RUN_OR_JSON… --out report.html`;
inputs are run folders and the JSON of eval.verification, eval.ijb, eval.quality and comparisons (eval/report_read.py).
The same inputs give the same bytes. Proven by tests/eval/test_report.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from eval import report_quality, report_run, report_scores
from eval.report_page import model_list, notes, page, paragraph
from eval.report_pictures import Pictures
from eval.report_read import Content, read_all
from recognition.errors import DataError, run_command


def build(content: Content, title: str | None = None, show_pictures: bool = True) -> str:
    """The page of what was read; pictures are read from where it says that they are."""
    models, pictures = content.models, Pictures(show_pictures)
    made = [
        ("scores", "Verification", report_scores.verification(models)),
        ("ijb", "IJB", report_scores.ijb(models)),
        ("search", "Identification", report_scores.identification(models)),
        ("curves", "ROC, DET and the hardest pairs", report_scores.curves(models, pictures)),
        ("quality", "Quality", report_quality.section(models, pictures)),
        ("seeds", "Comparisons over seeds", report_scores.comparisons(content.comparisons)),
        ("training", "Training", report_run.training(models)),
        ("settings", "Settings", report_run.settings(models)),
    ]
    absent = [f"{name}: nothing about it in what was given" for _, name, html in made if not html]
    sections = [one for one in made if one[2]]
    if remarks := [*content.notes, *absent]:
        sections.append(("absent", "Not shown", notes(remarks)))
    sources = list(dict.fromkeys(source for model in models for source in model.sources)) + list(content.comparisons)
    lead = model_list([model.name for model in models]) if len(models) > 1 else ""
    names = ", ".join(model.name for model in models) or "Comparison"
    if title is None:
        title = names if len(models) <= 3 else f"{len(models)} models"
    made_from = f"Made from {', '.join(sources)}."
    if pictures.sources:
        made_from += f" Pictures are from {', '.join(pictures.sources)}."
    return page(title, lead or paragraph("Evaluation report", muted=True), sections, made_from)


def main(arguments: Sequence[str]) -> int | None:
    """Write one HTML file that shows runs and results; several models stand side by side."""
    parser = argparse.ArgumentParser(prog="python -m eval.report", description=main.__doc__)
    parser.add_argument("inputs", nargs="+", metavar="RUN_OR_JSON",
                        help="run folder or JSON of an evaluation; NAME=PATH names the model, one name joins inputs")
    parser.add_argument("--out", required=True, metavar="FILE", help="the HTML file")
    parser.add_argument("--title", help="of the page (default: the models' names)")
    parser.add_argument("--no-pictures", action="store_true",
                        help="read no pictures from where the inputs say that their sets are")
    options = parser.parse_args(list(arguments))
    html = build(read_all(options.inputs), options.title, not options.no_pictures)
    try:
        Path(options.out).parent.mkdir(parents=True, exist_ok=True)
        Path(options.out).write_text(html, encoding="utf-8")
    except OSError as error:
        raise DataError(f"{options.out}: cannot be written: {error.strerror}") from None
    print(f"{options.out}: {len(html.encode()) / 1e6:.1f} MB")
    return None


if __name__ == "__main__":
    run_command(main)
