# Missing datasets: a treatment's training examples.
for job in WORK.jobs("dataset"):

    rule:
        name:
            job.name
        input:
            job.needs,
        output:
            directory(job.outputs),
        log:
            "results/store/logs/dataset/{name}.log",
        benchmark:
            "results/store/benchmarks/dataset/{name}.tsv"
        wildcard_constraints:
            name=job.names,
        threads: 1
        resources:
            gpu=0,
        params:
            args=job.args,
        message:
            "write dataset {wildcards.name}"
        shell:
            "propgen dataset {params.args} 2>&1 | tee {log}"
