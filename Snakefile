"""Table of contents. What runs, and why, is decided in propgen/plan.py and propgen/survey.py.

snakemake --cores all                              the quickstart
snakemake --cores all --config experiment=NAME     another experiment of conf/experiment/
snakemake --cores all datasets|adapters|cells|matrix|figures     stop earlier
"""

from propgen.workflow import start

WORK = start(workflow, config)


localrules: all, datasets, adapters, cells


rule all:
    input:
        WORK.needed,
        WORK.tables,
        WORK.figures,
    default_target: True


rule datasets:
    input:
        WORK.paths("dataset"),


rule adapters:
    input:
        WORK.paths("finetune"),


rule cells:
    input:
        WORK.paths("evaluate"),


include: "workflow/rules/model.smk"
include: "workflow/rules/dataset.smk"
include: "workflow/rules/finetune.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/matrix.smk"
include: "workflow/rules/figures.smk"


onerror:
    shell("(propgen matrix {args} partial=true && propgen figures {args} partial=true) || true", args=WORK.args(None, None))
