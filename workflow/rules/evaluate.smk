# Missing cells: finetunes that miss the same evaluations share a rule, and each of them is loaded once.
for job in WORK.jobs("evaluate"):

    rule:
        name:
            job.name
        input:
            job.needs,
        output:
            job.outputs,
        log:
            "results/store/logs/evaluate/{name}.log",
        benchmark:
            "results/store/benchmarks/evaluate/{name}.tsv"
        wildcard_constraints:
            name=job.names,
        threads: 1
        resources:
            gpu=WORK.gpu,
        params:
            args=job.args,
        message:
            "evaluate {wildcards.name}"
        shell:
            "propgen evaluate {params.args} 2>&1 | tee {log}"
