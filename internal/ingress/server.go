package ingress

import (
	"log/slog"
	"net/http"
	"strconv"
	"time"
)

// MaxConnections bounds the connections to the ingress at a time. Stripe needs some dozens.
const MaxConnections = 4096

// BusyAnswer is the answer to a connection beyond the limit, without TLS.
var BusyAnswer = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: " + strconv.Itoa(retryAfter) + "\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

const (
	// maxHeaderBytes bounds a request's line and headers. Stripe sends less
	// than 2 KiB.
	maxHeaderBytes = 16 << 10
	// readHeaderTimeout, readTimeout and idleTimeout bound how long a sender
	// may take over the headers, over the whole request, and between two.
	readHeaderTimeout = 5 * time.Second
	readTimeout       = 10 * time.Second
	idleTimeout       = 90 * time.Second
)

// Server returns an HTTP server with the bounds that a door to the internet
// needs.
func Server(handler http.Handler, logger *slog.Logger) *http.Server {
	// HTTP/2 would only add ways to attack: Stripe sends HTTP/1.1.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Server{
		Protocols:         &protocols,
		Handler:           handler,
		ReadHeaderTimeout: readHeaderTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      readTimeout + appendTimeout + 5*time.Second,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(logger.Handler(), slog.LevelDebug),
	}
}
