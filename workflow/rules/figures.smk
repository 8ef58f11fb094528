# The experiment's figures, from its tables alone.
rule figures:
    input:
        WORK.tables,
        WORK.statistics,
    output:
        report(WORK.figures, caption="../captions/heatmap.rst", category="Matrix"),
    log:
        f"results/store/logs/figures/{WORK.plan.name}.log",
    benchmark:
        f"results/store/benchmarks/figures/{WORK.plan.name}.tsv"
    params:
        digest=WORK.plan.figures_digest,
        args=WORK.args,
    message:
        f"draw the figures of {WORK.plan.name}"
    shell:
        "propgen figures {params.args} 2>&1 | tee {log}"
