package logtest_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/ordergate/ordergate/internal/logtest"
)

func TestTail(t *testing.T) {
	const bytes = 16 << 10
	log := logtest.Tail{Bytes: bytes}
	for i := range 10_000 {
		fmt.Fprintf(&log, "line %d\n", i)
	}
	lines := log.Lines()
	if len(lines) > bytes || len(lines) < bytes/2 || !strings.HasPrefix(lines, "line ") || !strings.HasSuffix(lines, "line 9999\n") {
		t.Errorf("%d bytes: %.20q", len(lines), lines)
	}
}
