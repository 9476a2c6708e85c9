// What the tutorials have: verify, insert, answer.
import Stripe from 'stripe';
import { Pool } from 'pg';

export const runtime = 'nodejs';
export const dynamic = 'force-dynamic';

const stripe = new Stripe(process.env.STRIPE_API_KEY ?? 'sk_test_bench');
const pool = new Pool({ connectionString: process.env.DATABASE_URL, max: 64 });
const ready = pool.query(
  'CREATE TABLE IF NOT EXISTS events (id text PRIMARY KEY, type text NOT NULL, body text NOT NULL, received_at timestamptz NOT NULL DEFAULT now())',
);
ready.catch(() => {}); // each request says so

export async function POST(request: Request) {
  const body = await request.text();
  let event: Stripe.Event;
  try {
    event = stripe.webhooks.constructEvent(body, request.headers.get('stripe-signature')!, process.env.STRIPE_WEBHOOK_SECRET!);
  } catch (error) {
    return new Response(`Webhook Error: ${(error as Error).message}`, { status: 400 });
  }
  await ready;
  await pool.query('INSERT INTO events (id, type, body) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING', [event.id, event.type, body]);
  return Response.json({ received: true });
}
