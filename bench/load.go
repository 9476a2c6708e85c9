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
	start     time.Time
	took      time.Duration
	late      []time.Duration // by how much requests were sent after their time, sorted
	latencies []time.Duration // of what was answered, sorted
	first     error           // of what failed
}

func (l *load) rate() float64 { return float64(l.sent-l.failed) / l.took.Seconds() }

func (l *load) quantile(q float64) time.Duration { return quantile(l.latencies, q) }

func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// ms is a duration in milliseconds.
func ms(d time.Duration) float64 { return d.Seconds() * 1000 }

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
	total := &load{start: time.Now()}
	var mu sync.Mutex
	var next atomic.Int64
	var senders sync.WaitGroup
	for range connections {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			cancel()
			senders.Wait()
			return nil, err
		}
		senders.Go(func() {
			defer func() { conn.Close() }() // the newest
			own := &load{}
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				total.sent += own.sent
				total.failed += own.failed
				total.latencies = append(total.latencies, own.latencies...)
				total.late = append(total.late, own.late...)
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
					began = total.start.Add(when(n))
					if wait := time.Until(began); wait > 0 {
						time.Sleep(wait)
					}
					own.late = append(own.late, time.Since(began))
				}
				own.sent++
				status, closed, err := exchange(conn, reader, events[n].request)
				if err == nil && status == want {
					own.latencies = append(own.latencies, time.Since(began))
				} else {
					own.failed++
					if own.first == nil {
						if own.first = err; err == nil {
							own.first = fmt.Errorf("status %d", status)
						}
					}
				}
				if err != nil || closed {
					conn.Close()
					again, err := net.Dial("tcp", addr)
					if err != nil {
						own.sent, own.failed, own.first = own.sent+1, own.failed+1, err
						return
					}
					conn = again
					reader.Reset(conn)
				}
			}
		})
	}
	senders.Wait()
	total.took = time.Since(total.start)
	slices.Sort(total.latencies)
	slices.Sort(total.late)
	return total, nil
}

// answerTimeout bounds one exchange.
const answerTimeout = 30 * time.Second

func exchange(conn net.Conn, reader *bufio.Reader, request []byte) (status int, closed bool, err error) {
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return 0, true, err
	}
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
