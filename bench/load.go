package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// load is what a number of connections sent, one request after the other each.
type load struct {
	sent      int
	failed    int // answered otherwise than was expected, or not at all
	took      time.Duration
	latencies []time.Duration // of what was answered, sorted
	first     error           // of what failed
}

func (l *load) rate() float64 { return float64(l.sent-l.failed) / l.took.Seconds() }

func (l *load) quantile(q float64) time.Duration {
	if len(l.latencies) == 0 {
		return 0
	}
	return l.latencies[min(len(l.latencies)-1, int(q*float64(len(l.latencies))))]
}

// pace says when the nth request may be sent; nil is as soon as can be.
type pace func(n int) time.Duration

// steady sends rate requests a second.
func steady(rate float64) pace {
	return func(n int) time.Duration { return time.Duration(float64(n) / rate * float64(time.Second)) }
}

// send sends events over a number of connections until there are none left or the
// time is over, and expects a status. With a pace, a latency counts from when the
// request should have been sent.
func send(ctx context.Context, addr string, events []event, connections int, limit time.Duration, want int, when pace) (*load, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	total := &load{}
	var mu sync.Mutex
	var next atomic.Int64
	var senders sync.WaitGroup
	start := time.Now()
	for range connections {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			return nil, err
		}
		senders.Go(func() {
			defer conn.Close()
			own := &load{}
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				total.sent += own.sent
				total.failed += own.failed
				total.latencies = append(total.latencies, own.latencies...)
				if total.first == nil {
					total.first = own.first
				}
			}()
			reader := bufio.NewReaderSize(conn, 4096)
			for ctx.Err() == nil {
				n := int(next.Add(1)) - 1
				if n >= len(events) {
					return
				}
				began := time.Now()
				if when != nil {
					began = start.Add(when(n))
					if wait := time.Until(began); wait > 0 {
						time.Sleep(wait)
					}
				}
				own.sent++
				status, closed, err := exchange(conn, reader, events[n].request)
				if err == nil && status == want {
					own.latencies = append(own.latencies, time.Since(began))
				} else {
					own.failed++
					if own.first == nil {
						own.first = fmt.Errorf("status %d, %w", status, err)
					}
				}
				if err != nil || closed {
					conn.Close()
					if conn, err = net.Dial("tcp", addr); err != nil {
						return
					}
					reader.Reset(conn)
				}
			}
		})
	}
	senders.Wait()
	total.took = time.Since(start)
	slices.Sort(total.latencies)
	return total, nil
}

func exchange(conn net.Conn, reader *bufio.Reader, request []byte) (status int, closed bool, err error) {
	if _, err := conn.Write(request); err != nil {
		return 0, true, err
	}
	response, err := http.ReadResponse(reader, nil)
	if err != nil {
		return 0, true, err
	}
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, response.Close, err
}
