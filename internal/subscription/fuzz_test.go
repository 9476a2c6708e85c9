package subscription

import (
	"encoding/json"
	"reflect"
	"testing"
)

// FuzzHeldOrder reads records: what was read is written and read as the same.
func FuzzHeldOrder(f *testing.F) {
	f.Add([]byte(`{"epoch":1,"head":{"sequence":7,"attempts":2},"dead_letters":[{"sequence":5,"event_id":"cs_1.1","kind":2,"reason":1,"epoch":1,"blocks":true}]}`), uint64(1))
	f.Add([]byte(`{"epoch":1,"head":{"sequence":7},"dead_letters":[{"sequence":9},{"sequence":5},{"sequence":9}]}`), uint64(2))
	f.Add([]byte(`{}`), uint64(0))
	f.Fuzz(func(t *testing.T, b []byte, epoch uint64) {
		var record heldOrder
		if json.Unmarshal(b, &record) != nil {
			return
		}
		first := record.restore("cs_1", epoch).record(epoch)
		again := first.restore("cs_1", epoch).record(epoch)
		if !reflect.DeepEqual(first, again) {
			t.Errorf("%+v became %+v", first, again)
		}
	})
}
