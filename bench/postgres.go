package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// database is a PostgreSQL of this run's own, with its default durability.
type database struct {
	process *process
	dsn     string
	port    string
}

// startDatabase makes a cluster and starts it.
func (b *bench) startDatabase(ctx context.Context) (*database, error) {
	dir, err := b.dir("postgres")
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr()
	if err != nil {
		return nil, err
	}
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	bin, err := postgresBin()
	if err != nil {
		return nil, err
	}
	as, err := notRoot(dir)
	if err != nil {
		return nil, err
	}
	initdb := exec.CommandContext(ctx, filepath.Join(bin, "initdb"), "-D", filepath.Join(dir, "data"), "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C")
	initdb.SysProcAttr, initdb.Dir = as, dir
	if out, err := initdb.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("initdb: %w\n%s", err, out)
	}
	server := exec.Command(filepath.Join(bin, "postgres"), "-D", filepath.Join(dir, "data"), "-p", port, "-k", dir, "-c", "listen_addresses=127.0.0.1")
	server.SysProcAttr, server.Dir = as, dir
	p, err := start(ctx, addr, server)
	if err != nil {
		return nil, err
	}
	d := &database{p, fmt.Sprintf("postgres://bench@127.0.0.1:%s/postgres?sslmode=disable", port), port}
	for deadline := time.Now().Add(readyTimeout); ; time.Sleep(50 * time.Millisecond) {
		conn, err := pgx.Connect(ctx, d.dsn)
		if err == nil {
			return d, conn.Close(ctx)
		}
		if time.Now().After(deadline) || ctx.Err() != nil {
			d.stop()
			return nil, err
		}
	}
}

func (d *database) stop() {
	d.process.cmd.Process.Signal(syscall.SIGINT) // a fast shutdown
	d.process.cmd.Wait()
}

// postgresBin finds the server's programs, which Debian does not put into PATH.
func postgresBin() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		return filepath.Dir(slices.Max(found)), nil
	}
	initdb, err := exec.LookPath("initdb")
	if err != nil {
		return "", errors.New("PostgreSQL's server is not installed: apt-get install postgresql, or leave it out with --skip postgres,nextjs")
	}
	return filepath.Dir(initdb), nil
}

// notRoot gives dir to a user that PostgreSQL agrees to run as.
func notRoot(dir string) (*syscall.SysProcAttr, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(account.Uid)
		gid, _ := strconv.Atoi(account.Gid)
		return &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}, os.Chown(dir, uid, gid)
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no other user")
}
