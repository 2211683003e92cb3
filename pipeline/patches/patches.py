"""Every patch of Ray, in one list: its name, its reason, its gain, and what of Ray it relies on.

A gain is the median, with the least and the most, of what a run of 100 images takes more when this patch alone is left out
(`python -m benchmarks.ray_patches`, two quiet cores: first file after 5.2 s with all and 9.8 s with none, 6.4 and 14.5 s
of CPU). A patch without a gain is not here.
"""

from __future__ import annotations

from pipeline.patches.patch import Patch, Place

_CONSTANTS = "ray._private.ray_constants"
_EXECUTION = "ray.data._internal.execution"
_ACTOR_POOL = f"{_EXECUTION}.operators.actor_pool_map_operator"

MONITORS = Patch(
    "monitors",
    "speed",
    "an autoscaler's monitor and a log monitor have nothing to do for one command; the agent's port is the same for every "
    "Ray on a machine, and next to another Ray the attempts to open it take 3.4 s",
    "two processes fewer: 0.9 s of CPU (0.0 to 1.1), exit 1.2 s sooner",
    (
        Place(
            "ray._private.parameter",
            "RayParams",
            ("dashboard_agent_listen_port", "include_log_monitor", "no_monitor"),
        ),
    ),
)
AGENTS = Patch(
    "agents",
    "speed",
    "a node's agents for the dashboard and for runtime environments serve nobody where there are neither",
    "two processes fewer, three with the API server that needs them: 3.2 s of CPU (1.8 to 3.3), first file 3.1 s sooner",
    (
        Place("ray._private.services", "start_ray_process", ("command", "process_type")),
        # `uv run` would put the workers in an environment that an agent builds. They use this process's environment.
        Place(_CONSTANTS, "RAY_ENABLE_UV_RUN_RUNTIME_ENV"),
    ),
)
API_SERVER = Patch(
    "api_server",
    "speed",
    "Ray starts the dashboard's server even with include_dashboard=False, and waits for it",
    "one process fewer: 0.9 s of CPU (0.8 to 0.9), first file 1.0 s sooner",
    (Place("ray._private.node", "Node.start_api_server", ("self", "include_dashboard", "raise_on_failure")),),
)
DATA_STATISTICS = Patch(
    "data_statistics",
    "speed",
    "this actor collects statistics for the dashboard, which a local Ray does not have",
    "one process fewer: 1.0 s of CPU (0.9 to 2.2)",
    (Place("ray.data._internal.stats", "get_or_create_stats_actor", ()),),
)
DATA_AUTOSCALER = Patch(
    "data_autoscaler",
    "speed",
    "this actor requests nodes, but a local Ray always has one",
    "one process fewer: 1.3 s of CPU (0.6 to 2.4)",
    (
        Place(
            f"{_EXECUTION}.streaming_executor",
            "create_cluster_autoscaler",
            ("topology", "resource_manager", "data_context", "execution_id"),
        ),
        Place(f"{_EXECUTION}.interfaces.execution_options", "ExecutionResources.from_resource_dict"),
    ),
)
DATA_LOCATIONS = Patch(
    "data_locations",
    "speed",
    "this actor records the node of each actor, but a local Ray has one node",
    "one process fewer: 0.8 s of CPU (0.0 to 1.0)",
    (
        Place(_ACTOR_POOL, "get_or_create_actor_location_tracker", ()),
        Place(_ACTOR_POOL, "get_actor_locations", ("logical_actor_ids",)),
    ),
)
SHORT_ERRORS = Patch(
    "short_errors",
    "words",
    "Ray prints pages when a node dies, even with log_to_driver=False",
    "the death of a node is one line",
    (Place("ray._private.worker", "print_to_stdstream", ("data", "ignore_prefix")),),
)
LOOPBACK = Patch(
    "loopback",
    "safety",
    "Ray's ports must be reachable from this machine alone",
    "no port on other interfaces, instead of 11",
    (Place(_CONSTANTS, "ENABLE_RAY_CLUSTER"),),
)
TOKEN = Patch(
    "token",
    "safety",
    "anyone who can reach a Ray can run code as the user who started it",
    "a token for each run, in no file",
    (
        Place("ray._raylet", "AuthenticationTokenLoader.instance"),
        Place("ray._raylet", "AuthenticationTokenLoader.reset_cache"),
        Place("ray._raylet", "Config.initialize"),
    ),
)
COMMAND_LINE = Patch(
    "command_line",
    "safety",
    "Ray shows the command line, with the keys in its URIs, to everyone who sees its dashboard",
    "no secret in Ray's records",
    (Place("ray._private.utils", "get_entrypoint_name", ()),),
)
WORKING_DIRECTORY = Patch(
    "working_directory",
    "safety",
    "Ray puts the driver's working directory first on its workers' path, where modules of another project hide ours",
    "a folder `models` or `pipeline` of the user's breaks no run",
    (
        Place("ray.job_config", "JobConfig", ("_client_job",)),
        Place(
            "ray._private.worker", words="if not job_config._client_job and not job_config._runtime_env_has_working_dir"
        ),
    ),
)
GRPC = Patch(
    "grpc",
    "safety",
    "Ray Serve's gRPC servers listen on every interface, and have no limits",
    "one address, and limits",
    (
        # For clients, and for other deployments: functions of a server and an address.
        Place("ray.serve._private.default_impl", "add_grpc_address", ("grpc_server", "server_address")),
        Place("ray.serve._private.replica", "add_port_to_grpc_server", ("server", "address")),
        # Their callers.
        Place("ray.serve._private.grpc_util", words='address(server, f"[::]:'),
        Place("ray.serve._private.replica", words='server(self._server, "[::]:'),
        Place("ray.serve._private.constants", "DEFAULT_GRPC_SERVER_OPTIONS"),
    ),
)

PATCHES = (
    *(MONITORS, AGENTS, API_SERVER, DATA_STATISTICS, DATA_AUTOSCALER, DATA_LOCATIONS),
    SHORT_ERRORS,
    *(LOOPBACK, TOKEN, COMMAND_LINE, WORKING_DIRECTORY, GRPC),
)
