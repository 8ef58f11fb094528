"""Table of contents. What runs, and why, is decided in propgen/planner.py and propgen/survey.py.

snakemake --cores all                              the quickstart
snakemake --cores all --config experiment=NAME     another experiment of conf/experiment/
snakemake --cores all datasets|adapters|cells|items|gates|matrix|statistics|figures     stop earlier
"""

from propgen.workflow import start

WORK = start(workflow, config)


localrules:
    all,
    datasets,
    adapters,
    cells,


rule all:
    default_target: True
    input:
        WORK.needed,
        WORK.items,
        WORK.gates,
        WORK.tables,
        WORK.statistics,
        WORK.figures,
    message:
        f"{WORK.plan.name} is complete"


rule datasets:
    input:
        WORK.paths("dataset"),
    message:
        f"all datasets of {WORK.plan.name} are there"


rule adapters:
    input:
        WORK.paths("finetune"),
    message:
        f"all adapters of {WORK.plan.name} are there"


rule cells:
    input:
        WORK.cells,
    message:
        f"all cells of {WORK.plan.name} are there"


include: "workflow/rules/model.smk"
include: "workflow/rules/dataset.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/items.smk"
include: "workflow/rules/gates.smk"
include: "workflow/rules/matrix.smk"
include: "workflow/rules/statistics.smk"
include: "workflow/rules/figures.smk"


onerror:
    # What is there, in results/<experiment>/partial/; complete tables and figures stay as they are.
    shell(
        "(propgen items {args} partial=true && propgen gates {args} partial=true"
        " && propgen matrix {args} partial=true && propgen figures {args} partial=true) || true",
        args=WORK.args(None, None),
    )
