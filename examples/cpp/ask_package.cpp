// Ask a package a question in C++, with onnxruntime's and onnxruntime-genai's own interfaces.
//
// The counterpart of ../ask_package.py: everything it needs to know of a package stands in its hvlc.json. It trusts the
// package as it trusts its own code: ask packages that you built or verified. An app takes its platform's decoder of
// images in the place of stb_image, which knows neither EXIF nor more than 8 bits a channel.
//
//     ask_package PACKAGE QUESTION IMAGE [ENCODER]

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>
#include <onnxruntime_cxx_api.h>
#include <ort_genai.h>

#define STB_IMAGE_IMPLEMENTATION
#include <stb_image.h>

using nlohmann::json;
using std::filesystem::path;

namespace {

constexpr int kMaxNewTokens = 64;

struct Image {
  int64_t height, width;
  std::vector<uint8_t> pixels;  // [height, width, 3], RGB
};

struct Seen {
  std::vector<float> features;  // [visual tokens, hidden]
  std::vector<int64_t> shape;
  std::vector<int64_t> ids;  // everything that stands for the image in the prompt
  int64_t rows, columns;
};

json ReadJson(const path& file) {
  std::ifstream stream(file);
  if (!stream) throw std::runtime_error("cannot read " + file.string());
  return json::parse(stream);
}

// 8-bit RGB, transparency on white.
Image LoadImage(const std::string& file) {
  int width, height, channels;
  uint8_t* decoded = stbi_load(file.c_str(), &width, &height, &channels, 4);
  const std::unique_ptr<uint8_t, void (*)(void*)> data(decoded, stbi_image_free);
  if (!data) throw std::runtime_error(file + ": " + stbi_failure_reason());
  Image image{height, width, std::vector<uint8_t>(size_t(3) * width * height)};
  for (size_t pixel = 0; pixel < image.pixels.size() / 3; ++pixel) {
    const int alpha = data.get()[4 * pixel + 3];
    for (size_t channel = 0; channel < 3; ++channel) {
      const int over = data.get()[4 * pixel + channel] * alpha + 255 * (255 - alpha);
      image.pixels[3 * pixel + channel] = uint8_t((over + 127) / 255);
    }
  }
  return image;
}

// A tensor that borrows its data.
template <typename T>
Ort::Value Tensor(const std::vector<T>& data, const std::vector<int64_t>& shape) {
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  return Ort::Value::CreateTensor<T>(memory, const_cast<T*>(data.data()), data.size(), shape.data(), shape.size());
}

template <typename T>
std::vector<T> Copied(const Ort::Value& value) {
  const T* data = value.GetTensorData<T>();
  return {data, data + value.GetTensorTypeAndShapeInfo().GetElementCount()};
}

std::vector<int64_t> ShapeOf(const Ort::Value& value) { return value.GetTensorTypeAndShapeInfo().GetShape(); }

// The graphs of a package that see.
class Vision {
 public:
  Vision(path package, json manifest) : package_(std::move(package)), manifest_(std::move(manifest)) {}

  Seen See(const Image& image, const std::vector<int64_t>& question, const std::optional<std::string>& encoder) {
    const json& images = manifest_["images"];
    std::vector<Ort::Value> front = RunFront(image, question);
    Seen seen;
    seen.ids = Copied<int64_t>(front[1]);
    const std::vector<int64_t> grid = Copied<int64_t>(front[2]);
    seen.rows = grid[0], seen.columns = grid[1];
    const double longer = double(std::max(image.height, image.width));
    const json figures = {
        {"visual_tokens", std::count(seen.ids.begin(), seen.ids.end(), images["token"].get<int64_t>())},
        {"pixels", image.height * image.width},
        {"aspect", longer / double(std::min(image.height, image.width))},
        {"scale", front[3].GetTensorData<float>()[0]}};
    Ort::Session vision = Open(EncoderFile(encoder.value_or(ChooseEncoder(figures)), ShapeOf(front[0])));
    std::vector<float> pieces = Encode(vision, front[0]);
    std::vector<int64_t> shape = last_shape_;
    std::vector<const char*> names{"tile_features", "grid"};
    std::vector<Ort::Value> feeds;
    std::vector<float> overview;
    std::vector<int64_t> whole;
    if (front.size() > 4) {  // one more piece, of a shape of its own
      overview = Encode(vision, front[4]);
      whole = last_shape_;
      if (pieces.empty()) shape = {0, whole[1], whole[2]};
      names.push_back("overview_features");
    }
    feeds.push_back(Tensor(pieces, shape));
    feeds.push_back(Tensor(grid, {2}));
    if (!overview.empty()) feeds.push_back(Tensor(overview, whole));
    Ort::Session stitch = Open(manifest_["components"]["stitch"]["file"]);
    const std::vector<Ort::Value> merged = Run(stitch, names, feeds, {"image_features"});
    seen.features = Copied<float>(merged[0]);
    seen.shape = ShapeOf(merged[0]);
    return seen;
  }

 private:
  std::vector<Ort::Value> RunFront(const Image& image, const std::vector<int64_t>& question) {
    const json& images = manifest_["images"];
    const bool asks = images["resolution_compressor"];
    const std::vector<float> scale{asks ? 0.f : 1.f};  // 0 asks the compressor, a scale above 0 is used as it is
    const std::vector<int64_t> bound{images["max_visual_tokens"]};
    std::vector<const char*> names{"image", "scale", "max_visual_tokens"};
    std::vector<Ort::Value> feeds;
    feeds.push_back(Tensor(image.pixels, {image.height, image.width, 3}));
    feeds.push_back(Tensor(scale, {1}));
    feeds.push_back(Tensor(bound, {1}));
    std::vector<int64_t> start;
    if (images["question_tokens"].is_number()) {  // this compressor looks at the question, too
      start = question;
      start.resize(std::min(start.size(), images["question_tokens"].get<size_t>()));
      names.push_back("question_ids");
      feeds.push_back(Tensor(start, {int64_t(start.size())}));
    }
    std::vector<const char*> outputs{"pixel_values", "image_ids", "grid", "used_scale"};
    if (images["overview"]) outputs.push_back("overview");
    Ort::Session front = Open(manifest_["components"]["front"]["file"]);
    return Run(front, names, feeds, outputs);
  }

  // The policy's own encoder: of the first rule whose conditions all hold. What callers can state, nobody states here.
  std::string ChooseEncoder(const json& figures) const {
    const json& policy = manifest_["policy"];
    const auto holds = [&](const json& rule) {
      if (rule.contains("task_tag") || rule.contains("device_class") || rule.contains("fits_latency")) return false;
      for (const auto& [name, figure] : figures.items()) {
        if (rule.contains("above_" + name) && !(figure > rule["above_" + name])) return false;
        if (rule.contains("below_" + name) && !(figure < rule["below_" + name])) return false;
      }
      return true;
    };
    for (const json& rule : policy["rules"]) {
      if (holds(rule)) return rule["encoder"];
    }
    return policy["default"];
  }

  // Where images have one of a few grids, each has its own graph.
  std::string EncoderFile(const std::string& name, const std::vector<int64_t>& pieces) const {
    if (manifest_["images"]["grids"].empty()) return manifest_["encoders"].at(name);
    const std::string shape = std::to_string(pieces[2]) + "x" + std::to_string(pieces[3]);
    return manifest_["components"].at("vision_" + name + "_" + shape)["file"];
  }

  // Features of pieces [n, 3, height, width], a few a run: peak memory is set by one batch, whatever the image.
  std::vector<float> Encode(Ort::Session& session, const Ort::Value& pieces) {
    std::vector<int64_t> shape = ShapeOf(pieces);
    const int64_t fixed = session.GetInputTypeInfo(0).GetTensorTypeAndShapeInfo().GetShape()[0];
    const int64_t batch = fixed > 0 ? fixed : manifest_["images"].value("tile_batch", 1), count = shape[0];
    const int64_t size = shape[1] * shape[2] * shape[3];
    std::vector<float> features;
    for (int64_t start = 0; start < count; start += batch) {
      shape[0] = std::min(batch, count - start);
      const float* data = pieces.GetTensorData<float>() + start * size;
      const std::vector<float> part(data, data + shape[0] * size);
      std::vector<Ort::Value> feeds;
      feeds.push_back(Tensor(part, shape));
      const std::vector<Ort::Value> made = Run(session, {"pixel_values"}, feeds, {"tile_features"});
      const std::vector<float> found = Copied<float>(made[0]);
      features.insert(features.end(), found.begin(), found.end());
      last_shape_ = ShapeOf(made[0]);
    }
    if (count) last_shape_[0] = count;
    return features;
  }

  Ort::Session Open(const std::string& file) {
    return Ort::Session(environment_, (package_ / file).c_str(), Ort::SessionOptions());
  }

  static std::vector<Ort::Value> Run(Ort::Session& session, const std::vector<const char*>& inputs,
                                     const std::vector<Ort::Value>& feeds, const std::vector<const char*>& outputs) {
    return session.Run(Ort::RunOptions(), inputs.data(), feeds.data(), feeds.size(), outputs.data(), outputs.size());
  }

  path package_;
  json manifest_;
  std::vector<int64_t> last_shape_;  // of the features that an encoder gave last
  Ort::Env environment_{ORT_LOGGING_LEVEL_WARNING, "ask_package"};
};

std::vector<int32_t> Encoded(const OgaTokenizer& tokenizer, const std::string& text) {
  auto sequences = OgaSequences::Create();
  tokenizer.Encode(text.c_str(), *sequences);
  const int32_t* data = sequences->SequenceData(0);
  return {data, data + sequences->SequenceCount(0)};
}

// Token ids of the chat prompt, what stands for the image in the place of its placeholder.
std::vector<int32_t> PromptIds(const OgaTokenizer& tokenizer, const json& manifest, const std::string& question,
                               const std::vector<int64_t>& image_ids) {
  const json messages = {
      {{"role", "user"}, {"content", {{{"type", "image"}}, {{"type", "text"}, {"text", question}}}}}};
  const std::string text(tokenizer.ApplyChatTemplate(nullptr, messages.dump().c_str(), nullptr, true));
  const auto is_ascii = [](char letter) { return static_cast<unsigned char>(letter) < 128; };
  if (manifest.contains("text") && !manifest["text"]["normalization"].is_null() &&
      !std::all_of(text.begin(), text.end(), is_ascii)) {
    throw std::runtime_error("this tokenizer wants normalized text: do it with ICU, as hvlc.json says in text");
  }
  const json& images = manifest["images"];
  const std::string placeholder = images["placeholder"];
  const size_t at = text.find(placeholder);
  if (at == std::string::npos) throw std::runtime_error("the chat template has no " + placeholder);
  const std::string before = text.substr(0, at) + images["before"].get<std::string>();
  const std::string after = images["after"].get<std::string>() + text.substr(at + placeholder.size());
  std::vector<int32_t> ids = Encoded(tokenizer, before);
  ids.insert(ids.end(), image_ids.begin(), image_ids.end());
  const std::vector<int32_t> end = Encoded(tokenizer, after);
  ids.insert(ids.end(), end.begin(), end.end());
  return ids;
}

// Time, row and column of every position of a decoder of fixed shapes, [3, context]: see ../ask_package.py.
std::vector<int32_t> PositionTable(const std::vector<int32_t>& ids, int32_t token, const Seen& seen, int64_t context) {
  const int64_t first = std::find(ids.begin(), ids.end(), token) - ids.begin(), count = seen.rows * seen.columns;
  std::vector<int32_t> table(3 * context);
  for (int64_t axis = 0; axis < 3; ++axis) {
    for (int64_t at = 0; at < context; ++at) {
      const int64_t within = at - first;
      int64_t position = at;
      if (within >= count) position += std::max(seen.rows, seen.columns) - count;
      if (within >= 0 && within < count) {
        position = first + (axis == 0 ? 0 : axis == 1 ? within / seen.columns : within % seen.columns);
      }
      table[axis * context + at] = int32_t(position);
    }
  }
  return table;
}

void Answer(const path& package, const std::string& question, const std::string& image,
            const std::optional<std::string>& encoder) {
  const json manifest = ReadJson(package / "hvlc.json"), config = ReadJson(package / "genai_config.json")["model"];
  const json& images = manifest["images"];
  auto model = OgaModel::Create(package.c_str());
  auto tokenizer = OgaTokenizer::Create(*model);
  const std::vector<int32_t> asked = Encoded(*tokenizer, question);
  Seen seen = Vision(package, manifest).See(LoadImage(image), {asked.begin(), asked.end()}, encoder);
  std::vector<int32_t> ids = PromptIds(*tokenizer, manifest, question, seen.ids);

  const int64_t ids_shape[] = {1, int64_t(ids.size())}, one[] = {1};
  int64_t count = seen.shape[0];
  auto inputs = OgaNamedTensors::Create();
  inputs->Set("input_ids", *OgaTensor::Create(ids.data(), ids_shape, 2, OgaElementType_int32));
  inputs->Set("num_image_tokens", *OgaTensor::Create(&count, one, 1, OgaElementType_int64));
  inputs->Set("host_image_features",
              *OgaTensor::Create(seen.features.data(), seen.shape.data(), 2, OgaElementType_float32));
  const bool is_fixed = config["decoder"].contains("pipeline");  // shapes are, and so is the length of the cache
  const int64_t context = config["context_length"];
  std::vector<int32_t> table;
  int64_t grid[] = {1, seen.rows, seen.columns};
  const int64_t table_shape[] = {3, context}, grid_shape[] = {1, 3};
  if (images["grid_positions"] && is_fixed) {  // positions of tokens follow the rows and columns of the image
    table = PositionTable(ids, images["token"], seen, context);
    inputs->Set("position_table", *OgaTensor::Create(table.data(), table_shape, 2, OgaElementType_int32));
  } else if (images["grid_positions"]) {
    inputs->Set("image_grid_thw", *OgaTensor::Create(grid, grid_shape, 2, OgaElementType_int64));
  }

  auto parameters = OgaGeneratorParams::Create(*model);
  parameters->SetSearchOption("max_length", is_fixed ? double(context) : double(ids.size() + kMaxNewTokens));
  parameters->SetSearchOptionBool("do_sample", false);
  auto generator = OgaGenerator::Create(*model, *parameters);
  generator->SetInputs(*inputs);
  auto stream = OgaTokenizerStream::Create(*tokenizer);
  const json eos = config["eos_token_id"];
  const auto ends = eos.is_array() ? eos.get<std::vector<int32_t>>() : std::vector<int32_t>{eos.get<int32_t>()};
  for (int step = 0; step < kMaxNewTokens && !generator->IsDone(); ++step) {
    generator->GenerateNextToken();
    const int32_t token = generator->GetNextTokens()[0];
    if (std::find(ends.begin(), ends.end(), token) == ends.end()) std::cout << stream->Decode(token) << std::flush;
  }
  std::cout << std::endl;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 4 || count > 5) {
    std::cerr << "usage: ask_package PACKAGE QUESTION IMAGE [ENCODER]" << std::endl;
    return 2;
  }
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);
  try {
    OgaHandle shutdown_at_the_end;
    Answer(arguments[1], arguments[2], arguments[3],
           count > 4 ? std::optional<std::string>(arguments[4]) : std::nullopt);
  } catch (const std::exception& error) {
    std::cerr << error.what() << std::endl;
    return 1;
  }
}
