"""Workers on the machines of a Ray cluster.

Ray places and watches processes, and nothing else: no queue of its own, no server of its own, no
retry. Each of its replicas runs the worker process of `iclora.serve.worker`, whose lines a bridge
carries, so a worker elsewhere looks to `LocalEngine` as one beside it.

    front       what starts a cluster, or joins one, and starts bridges; imports no ray
    head        the process that holds the cluster
    bridge      a process for each replica, here: lines in and out
    replica     the actor, where the GPU is: it starts the worker process
"""
