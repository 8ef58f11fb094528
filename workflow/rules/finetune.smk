# Missing adapters: a base model finetuned on a dataset.
for job in WORK.jobs("finetune"):

    rule:
        name:
            job.name
        input:
            job.needs,
        output:
            directory(job.outputs),
        log:
            "results/store/logs/finetune/{name}.log",
        benchmark:
            "results/store/benchmarks/finetune/{name}.tsv"
        wildcard_constraints:
            name=job.names,
        threads: 1
        resources:
            gpu=WORK.gpu,
        params:
            args=job.args,
        message:
            "finetune {wildcards.name}"
        shell:
            "propgen finetune {params.args} 2>&1 | tee {log}"
