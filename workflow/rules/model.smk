# Missing base models: fetched, checked against their pin, converted to safetensors; or assembled from a full finetune.
for job in WORK.jobs("model"):

    rule:
        name:
            job.name
        input:
            job.needs,
        output:
            directory(job.outputs),
        log:
            "results/store/logs/model/{name}.log",
        benchmark:
            "results/store/benchmarks/model/{name}.tsv"
        wildcard_constraints:
            name=job.names,
        threads: 1
        resources:
            gpu=0,
        params:
            args=job.args,
        message:
            "make base model {wildcards.name}"
        shell:
            "propgen model {params.args} 2>&1 | tee {log}"
