package adminhttp

import (
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/reflection"

	"github.com/ordergate/ordergate/internal/auth"
)

// maxProfile bounds how long one request may have the process measured.
const maxProfile = time.Minute

// handleDebug adds what operators look into the process with: pprof's profiles,
// and gRPC's channelz. The command line is not shown: secrets may be in it.
func handleDebug(mux *http.ServeMux, access *auth.Access) {
	profiles := http.NewServeMux()
	profiles.HandleFunc("/debug/pprof/", pprof.Index)
	profiles.HandleFunc("/debug/pprof/cmdline", http.NotFound)
	profiles.HandleFunc("/debug/pprof/profile", pprof.Profile)
	profiles.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	profiles.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.Handle("/debug/pprof/", forOperators(access, bounded(profiles)))

	// It is a gRPC server without a listener: the subscribers' door does not have it.
	server := grpc.NewServer()
	channelz.RegisterChannelzServiceToServer(server)
	reflection.Register(server)
	for service := range server.GetServiceInfo() {
		mux.Handle("/"+service+"/", forOperators(access, server))
	}
}

// bounded refuses to measure for too long.
func bounded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if text := r.FormValue("seconds"); text != "" {
			// pprof takes anything else for its default, which is shorter.
			if seconds, err := strconv.ParseFloat(text, 64); err == nil && !(seconds <= maxProfile.Seconds()) {
				answer(w, http.StatusBadRequest, map[string]any{"error": "seconds=" + text + ": at most " + strconv.Itoa(int(maxProfile.Seconds()))})
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// forOperators lets through who has the role operator. gRPC makes statuses of
// these answers: UNAUTHENTICATED and PERMISSION_DENIED.
func forOperators(access *auth.Access, next http.Handler) http.Handler {
	return forAnyRole(access, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p, err := access.Authenticate(shownBy(r)); err != nil || p.Role < auth.Operator {
			answer(w, http.StatusForbidden, map[string]any{"error": "this is for the role " + auth.Operator.String()})
			return
		}
		next.ServeHTTP(w, r)
	}))
}
