# What holds of the experiment's matrix as a whole, from its items and tables.
rule statistics:
    input:
        WORK.items,
        WORK.tables,
    output:
        WORK.statistics,
    log:
        f"results/store/logs/statistics/{WORK.plan.name}.log",
    benchmark:
        f"results/store/benchmarks/statistics/{WORK.plan.name}.tsv"
    params:
        digest=WORK.plan.statistics_digest,
        args=WORK.args,
    message:
        f"statistics of {WORK.plan.name}"
    shell:
        "propgen statistics {params.args} 2>&1 | tee {log}"
