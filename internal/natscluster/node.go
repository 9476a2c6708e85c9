//go:build unix

package natscluster

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"syscall"

	"github.com/nats-io/nats-server/v2/server"
)

const (
	// environment holds the configuration of a node, in its process.
	environment = "NATSCLUSTER_NODE"
	host        = "127.0.0.1"
	maxPayload  = 8 << 20
	maxMemory   = 64 << 20
	maxStore    = 10 << 30
)

// nodeConfig is how a node is told what it is, as JSON.
type nodeConfig struct {
	Name        string
	Dir         string
	Port        int // for clients
	RoutePort   int
	MonitorPort int
	Routes      []string // to the others
	SyncAlways  bool
}

// mainCalled keeps a program that forgets [Main] from starting itself without end.
var mainCalled bool

// Main runs a node, and does not return, in a process that was started as one. Call it
// first in main or TestMain.
func Main() {
	mainCalled = true
	text := os.Getenv(environment)
	if text == "" {
		return
	}
	if err := runNode(text); err != nil {
		fmt.Fprintln(os.Stderr, "natscluster: "+err.Error())
		os.Exit(1)
	}
	os.Exit(0)
}

// runNode runs a node until SIGTERM.
func runNode(text string) error {
	var cfg nodeConfig
	if err := json.Unmarshal([]byte(text), &cfg); err != nil {
		return err
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	options, err := cfg.options()
	if err != nil {
		return err
	}
	s, err := server.NewServer(options)
	if err != nil {
		return err
	}
	s.ConfigureLogger() // to stderr; what cannot be mended ends the process
	s.Start()
	<-signals
	s.Shutdown()
	s.WaitForShutdown()
	return nil
}

func (cfg *nodeConfig) options() (*server.Options, error) {
	options := &server.Options{
		ServerName: cfg.Name,
		Host:       host,
		Port:       cfg.Port,
		HTTPHost:   host,
		HTTPPort:   cfg.MonitorPort,
		Cluster:    server.ClusterOpts{Name: "natscluster", Host: host, Port: cfg.RoutePort},

		JetStream:              true,
		StoreDir:               cfg.Dir,
		SyncAlways:             cfg.SyncAlways,
		JetStreamMaxMemory:     maxMemory,
		JetStreamMaxStore:      maxStore,
		MaxPayload:             maxPayload,
		DisableJetStreamBanner: true,
		NoSigs:                 true,
		Logtime:                true,
	}
	for _, route := range cfg.Routes {
		u, err := url.Parse(route)
		if err != nil {
			return nil, err
		}
		options.Routes = append(options.Routes, u)
	}
	return options, nil
}
