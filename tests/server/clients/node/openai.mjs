import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ANIMAL, CITIES, CITY, HELLO, PICTURE, QUESTION } from "./asked.mjs";

const Animal = z.object({ kind: z.enum(["llama", "alpaca"]), age: z.int() });
const user = (content) => [{ role: "user", content }];
const weather = { name: "weather", description: "The weather of a city.", parameters: CITY, strict: true };

export function cases(url) {
  const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
  const chat = client.chat.completions;
  const ask = (content, more) => ({ model: "tiny", temperature: 0, messages: user(content), ...more });
  const reply = (input, more) => ({ model: "tiny", temperature: 0, input, ...more });

  return {
    async chat() {
      const found = await chat.create(ask("Hi"));
      assert.equal(found.choices[0].message.content, HELLO);
      assert.equal(found.choices[0].finish_reason, "stop");
      assert.equal(found.usage.total_tokens, found.usage.prompt_tokens + found.usage.completion_tokens);
    },

    async stream() {
      const stream = chat.stream(ask("Hi", { stream_options: { include_usage: true } }));
      let text = "";
      for await (const chunk of stream) text += chunk.choices[0]?.delta.content ?? "";
      const whole = await stream.finalChatCompletion();
      assert.equal(text, HELLO);
      assert.equal(whole.choices[0].message.content, HELLO);
      assert.ok(whole.usage.completion_tokens > 3);
    },

    async tools() {
      const asked = [];
      const runner = chat.runTools(
        ask(QUESTION, {
          tools: [
            {
              type: "function",
              function: {
                ...weather,
                parse: JSON.parse,
                function: (place) => (asked.push(place), "sunny"),
              },
            },
          ],
        }),
      );
      assert.equal(await runner.finalContent(), "It is sunny there.");
      assert.deepEqual(asked, CITIES);
      const stream = chat.stream(ask(QUESTION, { tools: [{ type: "function", function: weather }] }));
      const { message, finish_reason } = (await stream.finalChatCompletion()).choices[0];
      assert.equal(finish_reason, "tool_calls");
      assert.deepEqual(message.tool_calls.map((call) => JSON.parse(call.function.arguments)), CITIES);
    },

    async schema() {
      const form = { response_format: zodResponseFormat(Animal, "animal") };
      const found = await chat.parse(ask("Show an animal.", form));
      assert.deepEqual(found.choices[0].message.parsed, ANIMAL);
    },

    async pictures() {
      const content = [{ type: "text", text: "What?" }, { type: "image_url", image_url: { url: PICTURE } }];
      assert.equal((await chat.create(ask(content))).choices[0].message.content, "I see 1 pictures.");
    },

    async errors() {
      const wrong = (more, content = "Hi") => chat.create(ask(content, more));
      await assert.rejects(wrong({ model: "big" }), (error) => {
        assert.ok(error instanceof OpenAI.NotFoundError);
        assert.equal(error.code, "model_not_found");
        return true;
      });
      await assert.rejects(wrong({ temperature: 9 }), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError);
        assert.equal(error.param, "temperature");
        return true;
      });
      await assert.rejects(wrong({ stream: true }, "word ".repeat(3000)), (error) => {
        assert.ok(error instanceof OpenAI.BadRequestError);
        assert.equal(error.code, "context_length_exceeded");
        return true;
      });
    },

    async response() {
      const found = await client.responses.create(reply("Hi"));
      assert.equal(found.output_text, HELLO);
      const stream = client.responses.stream(reply("Hi"));
      let text = "";
      for await (const event of stream) if (event.type === "response.output_text.delta") text += event.delta;
      assert.equal(text, HELLO);
      assert.equal((await stream.finalResponse()).output_text, HELLO);
      const parsed = await client.responses.parse(
        reply("Show an animal.", { text: { format: zodTextFormat(Animal, "animal") } }),
      );
      assert.deepEqual(parsed.output_parsed, ANIMAL);
    },

    async "response with tools"() {
      const tools = [{ type: "function", ...weather }];
      const first = await client.responses.create(reply(QUESTION, { tools }));
      assert.deepEqual(first.output.map((call) => JSON.parse(call.arguments)), CITIES);
      const results = first.output.map(({ call_id }) => ({
        type: "function_call_output",
        call_id,
        output: "sunny",
      }));
      const second = await client.responses.create(
        reply(results, { tools, previous_response_id: first.id }),
      );
      assert.equal(second.output_text, "It is sunny there.");
    },

    async files() {
      const file = await client.files.create({
        file: await OpenAI.toFile(Buffer.from('{"a":1}\n'), "a.jsonl"),
        purpose: "batch",
      });
      assert.equal(await (await client.files.content(file.id)).text(), '{"a":1}\n');
      assert.ok((await client.files.delete(file.id)).deleted);
    },

    async embeddings() {
      const found = await client.embeddings.create({ model: "tiny", input: ["the", "other"] });
      assert.equal(found.data.length, 2);
      assert.ok(Math.abs(found.data[0].embedding.reduce((sum, x) => sum + x * x, 0) - 1) < 1e-4);
    },
  };
}
