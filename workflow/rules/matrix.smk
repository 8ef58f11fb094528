# The experiment's cells and effects, from its items and gates.
rule matrix:
    input:
        WORK.items,
        WORK.gates,
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
