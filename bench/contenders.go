package main

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/stripe/stripe-go/v76/webhook"
)

// serveHTTP serves until ctx ends.
func serveHTTP(ctx context.Context, addr string, handler http.HandlerFunc) error {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: handler}
	context.AfterFunc(ctx, func() { server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// serveBare reads bodies and answers 200: what net/http can do.
func serveBare(ctx context.Context, addr string) error {
	return serveHTTP(ctx, addr, func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"received":true}`)
	})
}

const (
	createEvents = `CREATE TABLE IF NOT EXISTS events (id text PRIMARY KEY, type text NOT NULL, body text NOT NULL, received_at timestamptz NOT NULL DEFAULT now())`
	insertEvent  = `INSERT INTO events (id, type, body) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING`
)

// servePostgres is what one writes by hand: verify, insert, answer.
func servePostgres(ctx context.Context, addr string) error {
	pool, err := pgxpool.New(ctx, os.Getenv("BENCH_DATABASE")+"&pool_max_conns=64")
	if err != nil {
		return err
	}
	defer pool.Close()
	if _, err := pool.Exec(ctx, createEvents); err != nil {
		return err
	}
	return serveHTTP(ctx, addr, func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		event, err := webhook.ConstructEventWithOptions(body, r.Header.Get("Stripe-Signature"), secret, webhook.ConstructEventOptions{IgnoreAPIVersionMismatch: true})
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if _, err := pool.Exec(r.Context(), insertEvent, event.ID, string(event.Type), string(body)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"received":true}`)
	})
}
