"""A package as a service: python service.py PACKAGE --port 8080 --threads 1 --workers 2.

GET /health answers 200 once a probe example was answered as the package's manifest says. POST /<request> takes and gives
JSON: {"image": "<base64 of a file>", "text": "..."} to {"answer": [...]}. Sounds are base64 of files, as pictures are.
"""

import argparse
import base64
import binascii
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import mmcompress
from mmcompress.errors import UsageError

LARGEST = 32 * 1024 * 1024
FILES = ("image", "audio")


def handler(package):
    """Answers requests with an opened package."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self):
            if self.path != "/health":
                return self.reply(404, {"error": "GET /health, or POST to one of the requests"})
            checks = {name: check.lowest for name, check in package.check_probe().items()}
            well = all(lowest is None or lowest > 0.99 for lowest in checks.values())
            self.reply(200 if well else 503, {"status": "ok" if well else "wrong answers", "requests": checks})

        def do_POST(self):
            size = int(self.headers.get("Content-Length") or 0)
            if not 0 < size <= LARGEST:
                self.close_connection = True
                return self.reply(413, {"error": f"expected a body of 1 to {LARGEST} bytes"})
            try:
                values = json.loads(self.rfile.read(size))
                values = {k: base64.b64decode(v, validate=True) if k in FILES else v for k, v in values.items()}
                answer = package.predict(values, self.path.strip("/") or None)
            except (UsageError, ValueError, TypeError, AttributeError, binascii.Error) as error:
                return self.reply(400, {"error": str(error)})
            self.reply(200, {"answer": answer})

        def reply(self, status, value):
            body = json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else vars(v)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def main():
    """Open the package and serve until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("package")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    with mmcompress.load_package(given.package, threads=given.threads, workers=given.workers) as package:
        server = ThreadingHTTPServer((given.host, given.port), handler(package))
        sys.stdout.write(f"listening on http://{given.host}:{server.server_address[1]}\n")
        sys.stdout.flush()
        server.serve_forever()


if __name__ == "__main__":
    main()
