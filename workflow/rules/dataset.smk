# Missing datasets: a treatment's training examples.
for job in WORK.jobs("dataset"):

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
            "results/store/logs/dataset/{name}.log",
        benchmark:
            "results/store/benchmarks/dataset/{name}.tsv"
        threads: 1
        resources:
            gpu=0,
        message:
            "write dataset {wildcards.name}"
        shell:
            "propgen dataset {params.args} 2>&1 | tee {log}"
