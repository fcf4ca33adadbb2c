"""A server of grpcio with its own grpc.health.v1 service, as what is checked.

Arguments: `health` or `bare` (no health service), then, for TLS, the files of the key and of the certificate.
Prints the port that it listens on.
"""

import sys
import time
from concurrent import futures

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))
if sys.argv[1] == "health":
    servicer = health.HealthServicer()
    Status = health_pb2.HealthCheckResponse
    servicer.set("", Status.SERVING)
    servicer.set("shop.v1", Status.SERVING)
    servicer.set("shop.v2", Status.NOT_SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
if len(sys.argv) > 2:
    key, certificate = (open(file, "rb").read() for file in sys.argv[2:4])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
else:
    port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
while True:
    time.sleep(3600)
