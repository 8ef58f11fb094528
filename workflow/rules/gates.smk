# Which finetunes are sound, from the experiment's items.
rule gates:
    input:
        WORK.items,
    output:
        WORK.gates,
    log:
        f"results/store/logs/gates/{WORK.plan.name}.log",
    benchmark:
        f"results/store/benchmarks/gates/{WORK.plan.name}.tsv"
    params:
        digest=WORK.plan.gates_digest,
        args=WORK.args,
    message:
        f"gates of {WORK.plan.name}"
    shell:
        "propgen gates {params.args} 2>&1 | tee {log}"
