# All of the experiment's cells in one table.
rule items:
    input:
        WORK.cells,
    output:
        WORK.items,
    log:
        f"results/store/logs/items/{WORK.plan.name}.log",
    benchmark:
        f"results/store/benchmarks/items/{WORK.plan.name}.tsv"
    params:
        digest=WORK.plan.items_digest,
        args=WORK.args,
    message:
        f"collect the items of {WORK.plan.name}"
    shell:
        "propgen items {params.args} 2>&1 | tee {log}"
