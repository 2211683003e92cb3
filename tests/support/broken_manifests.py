"""Manifests with one fault each, made from valid rendered ones."""

from __future__ import annotations

from tests.support.manifests import Change, drop, inside, put, rename, replace

JOB = ("spec", "rayClusterSpec")
SERVICE = ("spec", "rayClusterConfig")
SERVE = ("spec", "serveConfigV2")
GPU = (*JOB, "workerGroupSpecs", 0)
GPU_POD = (*GPU, "template", "spec")
GPU_BOX = (*GPU_POD, "containers", 0)
HEAD = (*JOB, "headGroupSpec")
HEAD_BOX = (*HEAD, "template", "spec", "containers", 0)

# (target, change, where the fault is, what the message says)
BROKEN: dict[str, tuple[str, Change, str, str]] = {
    "misspelt key of the job": (
        "rayjob", rename("spec", "submissionMode", to="submisionMode"),
        "spec.submisionMode", "unknown key 'submisionMode'; did you mean 'submissionMode'?"),
    "misspelt required key": (
        "rayjob", rename(*GPU, "maxReplicas", to="maxReplica"),
        "workerGroupSpecs[0].maxReplica", "did you mean 'maxReplicas'?"),
    "unknown key deep in a pod": (
        "rayjob", put(*GPU_BOX, "imagePullPolicies", to="Always"),
        "containers[0].imagePullPolicies", "did you mean 'imagePullPolicy'?"),
    "key of another level": (
        "rayjob", put(*JOB, "ttlSecondsAfterFinished", to=60),
        "spec.rayClusterSpec.ttlSecondsAfterFinished", "unknown key"),
    "number where text is expected": (
        "rayjob", put(*HEAD, "rayStartParams", "num-cpus", to=0),
        "rayStartParams.num-cpus", "expected text, got 0; write it in quotes"),
    "text where a number is expected": (
        "rayjob", put("spec", "backoffLimit", to="2"),
        "spec.backoffLimit", "expected a whole number, got '2'; write it without quotes"),
    "a list where a mapping is expected": (
        "rayjob", put(*GPU_POD, "securityContext", to=[]),
        "spec.securityContext", "expected a mapping, got a list"),
    "memory in an unknown unit": (
        "rayjob", put(*GPU_BOX, "resources", "limits", "memory", to="26GB"),
        "resources.limits.memory", "expected a quantity"),
    "memory with a line break behind it": (
        "rayjob", put(*GPU_BOX, "resources", "limits", "memory", to="26Gi\n"),
        "resources.limits.memory", "expected a quantity"),
    "a whole number with a point": (
        "rayjob", put(*GPU, "maxReplicas", to=4.0), "workerGroupSpecs[0].maxReplicas", "expected a whole number, got 4.0"),
    "a number that is too small": (
        "rayjob", put("spec", "backoffLimit", to=-1), "spec.backoffLimit", "must be at least 0, got -1"),
    "a key that is a number": (
        "rayjob", put(*GPU_POD, "nodeSelector", to={5: "x"}),
        "spec.nodeSelector", "keys must be text, got 5; write it in quotes"),
    "fraction of a CPU without quotes": (
        "rayjob", put("spec", "submitterPodTemplate", "spec", "containers", 0, "resources", "requests", "cpu", to=0.5),
        "resources.requests.cpu", "got 0.5"),
    "no apiVersion": ("rayjob", drop("apiVersion"), "apiVersion", "missing key 'apiVersion', expected 'ray.io/v1'"),
    "old apiVersion": (
        "rayjob", put("apiVersion", to="ray.io/v1alpha1"), "apiVersion", "got 'ray.io/v1alpha1', expected 'ray.io/v1'"),
    "misspelt kind": ("rayjob", put("kind", to="RayJobs"), "kind", "did you mean 'RayJob'?"),
    "upper-case name": (
        "rayjob", put("metadata", "name", to="Label_Images"), "metadata.name", "DNS-1035"),
    "name too long for KubeRay": (
        "rayjob", put("metadata", "name", to="l" * 48), "metadata.name", "at most 47 characters, got 48"),
    "unknown submission mode": (
        "rayjob", put("spec", "submissionMode", to="K8SJobMode"), "spec.submissionMode", "did you mean 'K8sJobMode'?"),
    "submitter in a mode without one": (
        "rayjob", put("spec", "submissionMode", to="SidecarMode"), "spec.submitterPodTemplate", "no submitter pod"),
    "submitter that is restarted": (
        "rayjob", put("spec", "submitterPodTemplate", "spec", "restartPolicy", to="Always"),
        "submitterPodTemplate.spec.restartPolicy", "a Kubernetes Job refuses"),
    "kept after the end, but never shut down": (
        "rayjob", put("spec", "shutdownAfterJobFinishes", to=False),
        "spec.ttlSecondsAfterFinished", "shutdownAfterJobFinishes: true"),
    "no cluster": ("rayjob", drop(*JOB), "spec", "missing key 'rayClusterSpec'"),
    "another Ray than installed": (
        "rayjob", put(*JOB, "rayVersion", to="2.52.0"), "rayClusterSpec.rayVersion", "expected Ray 2.60.0"),
    "an image with another Ray": (
        "rayjob", put(*GPU_BOX, "image", to="registry.example.com/shardlabel:0.1.0-ray2.59.0-cuda"),
        "workerGroupSpecs[0].template.spec.containers[0].image", "expected an image with Ray 2.60.0, got 2.59.0"),
    "Ray's own image of another version": (
        "rayjob", put(*HEAD_BOX, "image", to="rayproject/ray:2.46.0-py311"),
        "headGroupSpec.template.spec.containers[0].image", "got 2.46.0"),
    "an image without a fixed tag": (
        "rayjob", put(*HEAD_BOX, "image", to="registry.example.com/shardlabel:latest"),
        "containers[0].image", "expected a fixed tag"),
    "token authentication off": (
        "rayjob", put(*JOB, "authOptions", "mode", to="disabled"), "authOptions.mode", "expected 'token'"),
    "dashboard open to the outside": (
        "rayjob", put(*HEAD, "serviceType", to="LoadBalancer"), "headGroupSpec.serviceType", "expected 'ClusterIP'"),
    "dashboard that KubeRay cannot ask": (
        "rayjob", put(*HEAD, "rayStartParams", "dashboard-host", to="127.0.0.1"),
        "rayStartParams.dashboard-host", "KubeRay polls the dashboard"),
    "misspelt option of ray start": (
        "rayjob", rename(*HEAD, "rayStartParams", "num-cpus", to="num-cpu"),
        "rayStartParams.num-cpu", "did you mean 'num-cpus'?"),
    "more GPUs than the pod's limit": (
        "rayjob", put(*GPU, "rayStartParams", "num-gpus", to="2"), "rayStartParams.num-gpus", "nvidia.com/gpu (1)"),
    "minimum above maximum": (
        "rayjob", put(*GPU, "minReplicas", to=9), "workerGroupSpecs[0].minReplicas", "at most maxReplicas (4), got 9"),
    "replicas outside minimum and maximum": (
        "rayjob", put(*GPU, "replicas", to=7), "workerGroupSpecs[0].replicas", "expected 1 to 4"),
    "two groups of one name": (
        "rayjob", put(*JOB, "workerGroupSpecs", 1, "groupName", to="gpu"),
        "workerGroupSpecs[1].groupName", "two groups have the name 'gpu'"),
    "no memory limit": (
        "rayjob", drop(*GPU_BOX, "resources", "limits", "memory"), "resources.limits", "missing key 'memory'"),
    "request above the limit": (
        "rayjob", put(*GPU_BOX, "resources", "requests", "memory", to="64Gi"),
        "resources.requests.memory", "requests 64Gi are above the limit of 26Gi"),
    "GPU only in the requests": (
        "rayjob", drop(*GPU_BOX, "resources", "limits", "nvidia.com/gpu"),
        "resources.limits", "missing key 'nvidia.com/gpu'"),
    "mount of a volume that does not exist": (
        "rayjob", put(*GPU_BOX, "volumeMounts", 0, "name", to="model"),
        "volumeMounts[0].name", "the pod has no volume 'model'; did you mean 'models'?"),
    "a secret in the open": (
        "rayjob", put(*GPU_BOX, "env", 0, to={"name": "AWS_SECRET_ACCESS_KEY", "value": "abc"}),
        "env[0].value", "AWS_SECRET_ACCESS_KEY is given in plain text"),
    "head on a spot node": (
        "rayjob", put(*HEAD, "template", "spec", "nodeSelector", to={"cloud.google.com/gke-spot": "true"}),
        "nodeSelector['cloud.google.com/gke-spot']", "the head is on a spot node"),
    "two volumes of one name": (
        "rayjob", put(*GPU_POD, "volumes", to=[{"name": "models", "emptyDir": {}}] * 2),
        "volumes[1]", "name 'models' is given twice"),
    "options of an autoscaler that is off": (
        "rayjob", put(*JOB, "enableInTreeAutoscaling", to=False), "autoscalerOptions", "has no effect"),
    "misspelt option of label": (
        "rayjob", replace("spec", "entrypoint", old="--output", new="--ouput"),
        "spec.entrypoint", "No such option: --ouput"),
    "value that label refuses": (
        "rayjob", replace("spec", "entrypoint", old="--precision auto", new="--precision int4"),
        "spec.entrypoint", "--precision: input should be 'auto', 'fp32', 'int8' or 'fp16', got 'int4'"),
    "no output": (
        "rayjob", replace("spec", "entrypoint", old="--output s3://my-bucket/labels ", new=""),
        "spec.entrypoint", "--output is missing"),
    "another command": (
        "rayjob", replace("spec", "entrypoint", old="shardlabel label", new="shardlabel lable"),
        "spec.entrypoint", "did you mean 'label'?"),
    "a quote that does not end": (
        "rayjob", replace("spec", "entrypoint", old="tar'", new="tar"), "spec.entrypoint", "the shell cannot parse it"),
    "credentials in the entrypoint": (
        "rayjob", replace("spec", "entrypoint", old="s3://my-bucket/labels", new="s3://KEYID:W0RD@my-bucket/labels"),
        "spec.entrypoint", "--output: expected no credentials, got some in s3://my-bucket/labels"),
    "output on each node's own disk": (
        "rayjob", replace("spec", "entrypoint", old="s3://my-bucket/labels", new="/data/labels"),
        "spec.entrypoint", "expected shared storage"),
    "more actors than GPUs": (
        "rayjob", replace("spec", "entrypoint", old="--actors 1:4", new="--actors 1:5"),
        "spec.entrypoint", "5 actors of 1 CPUs and 1 GPUs each do not fit, there is room for 4"),
    "more actors at least than GPUs at the start": (
        "rayjob", replace("spec", "entrypoint", old="--actors 1:4", new="--actors 2:4"),
        "spec.entrypoint", "with the minimum of workers (minReplicas), 2 actors"),
    "no GPU at the start": (
        "rayjob", put(*GPU, "minReplicas", to=0), "spec.entrypoint", "with the minimum of workers (minReplicas), 1 actors"),
    "no GPU at all": (
        "rayjob", drop(*GPU), "spec.entrypoint", "expected workers with GPUs"),
    "misspelt key of the runtime environment": (
        "rayjob", inside(("spec", "runtimeEnvYAML"), rename("env_vars", to="env_var")),
        "spec.runtimeEnvYAML env_var", "did you mean 'env_vars'?"),
    "environment that is no text": (
        "rayjob", inside(("spec", "runtimeEnvYAML"), put("env_vars", "PYTHONUNBUFFERED", to=1)),
        "spec.runtimeEnvYAML env_vars.PYTHONUNBUFFERED", "expected text, got 1"),
    "environment that a shell would read": (
        "rayjob", inside(("spec", "runtimeEnvYAML"), put("env_vars", "WHO", to="$(id)")),
        "spec.runtimeEnvYAML", "expected no $"),
    "runtime environment that is no YAML": (
        "rayjob", put("spec", "runtimeEnvYAML", to="env_vars: {A: '1'\n"), "spec.runtimeEnvYAML", "is not YAML"),
    "port of Serve that KubeRay does not find": (
        "rayservice", drop(*SERVICE, "headGroupSpec", "template", "spec", "containers", 0, "ports", 3),
        "containers[0].ports", "there is no port 'serve'"),
    "Serve on another port than the head says": (
        "rayservice", inside(SERVE, put("http_options", "port", to=8080)),
        "containers[0].ports", "expected 8080 as the port 'serve', got 8000"),
    "head without a port for its dashboard": (
        "rayjob", put(*HEAD_BOX, "ports", 1, "name", to="dash"), "containers[0].ports", "there is no port 'dashboard'"),
    "misspelt key of Serve": (
        "rayservice", inside(SERVE, rename("http_options", to="http_option")),
        "spec.serveConfigV2 http_option", "did you mean 'http_options'?"),
    "misspelt option of a deployment": (
        "rayservice",
        inside(SERVE, put("applications", 0, "deployments", to=[{"name": "Classifier", "max_ongoing_request": 8}])),
        "spec.serveConfigV2 applications[0].deployments[0].max_ongoing_request", "did you mean 'max_ongoing_requests'?"),
    "option of a deployment among those of autoscaling": (
        "rayservice",
        inside(SERVE, put("applications", 0, "deployments", to=[
            {"name": "Classifier", "autoscaling_config": {"max_ongoing_requests": 8}}])),
        "deployments[0].autoscaling_config.max_ongoing_requests", "unknown key 'max_ongoing_requests'"),
    "deployment that the endpoint does not have": (
        "rayservice", inside(SERVE, put("applications", 0, "deployments", to=[{"name": "Classifer"}])),
        "deployments[0].name", "has no deployment 'Classifer'; expected 'Classifier'"),
    "least replicas of a deployment above most": (
        "rayservice",
        inside(SERVE, put("applications", 0, "deployments", to=[
            {"name": "Classifier", "autoscaling_config": {"min_replicas": 3, "max_replicas": 2}}])),
        "deployments[0].autoscaling_config", "max_replicas (2) must be greater than or equal to min_replicas (3)"),
    "target of autoscaling that is never reached": (
        "rayservice",
        inside(SERVE, put("applications", 0, "deployments", to=[
            {"name": "Classifier", "max_ongoing_requests": 4, "autoscaling_config": {"target_ongoing_requests": 8}}])),
        "autoscaling_config.target_ongoing_requests", "it would never grow"),
    "replicas that do not fit": (
        "rayservice",
        inside(SERVE, put("applications", 0, "deployments", to=[
            {"name": "Classifier", "num_replicas": 9, "ray_actor_options": {"num_gpus": 1}}])),
        "applications[0].deployments[0].num_replicas", "9 replicas of Classifier of 1 CPUs and 1 GPUs each do not fit"),
    "module that is not there": (
        "rayservice", inside(SERVE, put("applications", 0, "import_path", to="serve.ap:build_app")),
        "applications[0].import_path", "'serve.ap' cannot be imported"),
    "function that is not there": (
        "rayservice", inside(SERVE, put("applications", 0, "import_path", to="serve.app:build_ap")),
        "applications[0].import_path", "'serve.app' has no 'build_ap'; did you mean 'build_app'?"),
    "misspelt argument of the builder": (
        "rayservice", inside(SERVE, rename("applications", 0, "args", "max_replicas", to="max_replica")),
        "applications[0].args.max_replica", "did you mean 'max_replicas'?"),
    "argument that the builder refuses": (
        "rayservice", inside(SERVE, put("applications", 0, "args", "min_replicas", to=-1)),
        "applications[0].args.min_replicas", "greater than or equal to 0"),
    "more replicas than GPUs": (
        "rayservice", inside(SERVE, put("applications", 0, "args", "max_replicas", to=5)),
        "applications[0].args.max_replicas", "5 replicas of 7 CPUs and 1 GPUs each do not fit, there is room for 4"),
    "more replicas at least than workers at the start": (
        "rayservice", inside(SERVE, put("applications", 0, "args", "min_replicas", to=3)),
        "applications[0].args.min_replicas", "with the minimum of workers (minReplicas), 3 replicas"),
    "gRPC function that does not exist": (
        "rayservice",
        inside(SERVE, put("grpc_options", "grpc_servicer_functions", 0, to="serve.oip.grpc.service:add_to_servers")),
        "grpc_options.grpc_servicer_functions[0]", "did you mean 'add_to_server'?"),
    "two applications of one name": (
        "rayservice",
        inside(SERVE, lambda docs: docs[0]["applications"].append({**docs[0]["applications"][0], "route_prefix": "/b"})),
        "spec.serveConfigV2 applications", "multiple configs for application"),
    "Serve on the pod's loopback": (
        "rayservice", inside(SERVE, put("http_options", "host", to="127.0.0.1")),
        "http_options.host", "expected '0.0.0.0'"),
    "no configuration of Serve": ("rayservice", drop(*SERVE), "spec", "missing key 'serveConfigV2'"),
    "unknown way to upgrade": (
        "rayservice", put("spec", "upgradeStrategy", "type", to="NewClusters"),
        "spec.upgradeStrategy.type", "did you mean 'NewCluster'?"),
    "misspelt key of ray up": (
        "ray-up", rename("max_workers", to="max_worker"), "max_worker", "did you mean 'max_workers'?"),
    "unknown key of a node type": (
        "ray-up", put("available_node_types", "gpu", "max_worker", to=4),
        "available_node_types.gpu.max_worker", "did you mean 'max_workers'?"),
    "head of a type that does not exist": (
        "ray-up", put("head_node_type", to="heads"), "head_node_type", "did you mean 'head'?"),
    "unknown provider": ("ray-up", put("provider", "type", to="awss"), "provider.type", "did you mean 'aws'?"),
    "dashboard on every interface": (
        "ray-up", replace("head_start_ray_commands", 1, old="127.0.0.1", new="0.0.0.0"),
        "head_start_ray_commands[1]", "expected --dashboard-host=127.0.0.1"),
    "ray up without the token": (
        "ray-up", put("docker", "run_options", to=[]), "docker.run_options", "token authentication is off"),
    "head on a spot instance": (
        "ray-up", put("available_node_types", "head", "node_config", "InstanceMarketOptions", to={"MarketType": "spot"}),
        "available_node_types.head", "the head is on a spot instance"),
    "maximum of all workers below the minimum": (
        "ray-up", put("max_workers", to=0), "max_workers", "expected at least 1"),
    "half a GPU of a node": (
        "ray-up", put("available_node_types", "gpu", "resources", "GPU", to=0.5),
        "available_node_types.gpu.resources.GPU", "expected a whole number"),
}  # fmt: skip
