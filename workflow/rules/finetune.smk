# Missing adapters: a base model finetuned on a dataset.
for job in WORK.jobs("finetune"):

    rule:
        name:
            job.name
        input:
            job.needs,
        output:
            directory(job.outputs),
        wildcard_constraints:
            name=job.names,
        params:
            args=job.args,
        log:
            "results/store/logs/finetune/{name}.log",
        benchmark:
            "results/store/benchmarks/finetune/{name}.tsv"
        threads: 1
        resources:
            gpu=WORK.gpu,
        message:
            "finetune {wildcards.name}"
        shell:
            "propgen finetune {params.args} 2>&1 | tee {log}"
