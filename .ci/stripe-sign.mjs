// Reads a body from standard input and prints the Stripe-Signature header that
// Stripe's own Node client makes for it, with the secret in
// STRIPE_WEBHOOK_SECRET. It stands here because Node.js looks for packages in
// the folder of the script: .ci/node_modules, put there by .ci/install.
import { readFileSync } from 'node:fs';
import Stripe from 'stripe';

// The client wants a key, though signing needs none.
const stripe = new Stripe('rk_test_stripetest');
const header = stripe.webhooks.generateTestHeaderString({
  payload: readFileSync(0, 'utf8'),
  secret: process.env.STRIPE_WEBHOOK_SECRET,
});
console.log(header);
