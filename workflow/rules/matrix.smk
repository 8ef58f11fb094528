# The experiment's tables, from all of its cells.
rule matrix:
    input:
        WORK.cells,
    output:
        WORK.tables,
    log:
        f"results/store/logs/matrix/{WORK.plan.name}.log",
    benchmark:
        f"results/store/benchmarks/matrix/{WORK.plan.name}.tsv"
    params:
        digest=WORK.plan.matrix_digest,
        args=WORK.args,
    message:
        f"tabulate {WORK.plan.name}"
    shell:
        "propgen matrix {params.args} 2>&1 | tee {log}"
